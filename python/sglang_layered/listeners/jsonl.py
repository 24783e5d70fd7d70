"""The `jsonl` listener: every event as one JSON line, for tests and research."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sglang_layered.core.events import Event
from sglang_layered.core.pacing import Decision, ModelSizes, Option, StepLoad
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.listeners.files import WholeFile, check_writable


class JsonlListener:
    """Appends events to a file, a whole line at a time, so a killed server leaves no half line."""

    def __init__(self, path: str) -> None:
        self._file = WholeFile(path, "a")

    @staticmethod
    def check(path: str, where: str) -> None:
        """Refuse a path that cannot be written, before a server starts."""
        check_writable(path, where)

    def on_event(self, event: Event) -> None:
        """Append one line."""
        self._file.write(json.dumps(event_record(event)) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def event_record(event: Event) -> dict[str, Any]:
    """The event's name in snake case as `event`, then its fields as JSON values.

    A layer group is [start, end), a plan the list of its groups; times are rounded to microseconds.
    """
    values = {item.name: _json_value(getattr(event, item.name)) for item in fields(event)}
    return {"event": event_name(type(event)), **values}


def event_name(event_class: type[Event]) -> str:
    """`step_done` for StepDone."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event_class.__name__).lower()


def _json_value(value: Any) -> Any:
    match value:
        case LayerGroup():
            return [value.start, value.end]
        case LayerGroupPlan():
            return [_json_value(group) for group in value.groups]
        case StepLoad() | Decision() | Option() | ModelSizes():
            return {item.name: _json_value(getattr(value, item.name)) for item in fields(value)}
        case Mapping():
            return {key: _json_value(each) for key, each in value.items()}
        case tuple():
            return list(value)
        case float():
            return round(value, 6)
        case _:
            return value
