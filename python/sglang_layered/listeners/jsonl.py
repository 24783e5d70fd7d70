"""The `jsonl` listener: every event as one JSON line, for tests and research."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sglang_layered.core.events import Event
from sglang_layered.core.pacing import Decision, ModelSizes, Option, StepLoad
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.files import FileListener


class JsonlListener(FileListener):
    """Appends events to a file, a whole line at a time, so a killed server leaves no half line."""

    def on_event(self, event: Event) -> None:
        """Append one line."""
        self._file.write(json.dumps(event_record(event)) + "\n")


def event_record(event: Event) -> dict[str, Any]:
    """The event's name in snake case as `event`, then its fields as JSON values.

    A layer group is [start, end), a plan the list of its groups; times are rounded to microseconds.
    """
    values = {item.name: _json_value(getattr(event, item.name)) for item in fields(event)}
    return {"event": re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower(), **values}


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
