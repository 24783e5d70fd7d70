"""Listeners: who hears an event, what the files then hold, and how a flag names them."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import pytest

from listener_story import FINISHED, STORY
from sglang_layered import hooks
from sglang_layered.core import lookup
from sglang_layered.core.events import (
    Event,
)
from sglang_layered.errors import ConfigError
from sglang_layered.listeners.dispatch import Listener, Listeners, check_listeners, find_listeners
from sglang_layered.listeners.jsonl import JsonlListener, event_record
from sglang_layered.listeners.perfetto import PerfettoListener

REPO = Path(__file__).resolve().parents[2]


class Remembers:
    """A listener that `module:Class=NAME` can name; it has no close."""

    def __init__(self, name: str = "nobody") -> None:
        self.name = name
        self.heard: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.heard.append(event)


class Closes(Remembers):
    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


class RaisesAt(Closes):
    """Raises on its second event, and again on close."""

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if len(self.heard) == 2:
            raise RuntimeError("no disk")

    def close(self) -> None:
        super().close()
        raise OSError("still no disk")


class TakesNothing:
    def on_event(self, event: Event) -> None:
        pass


class CannotBeMade(TakesNothing):
    def __init__(self) -> None:
        raise KeyError("setting")


class NoListener:
    pass


def test_every_listener_hears_every_event_in_order() -> None:
    heard = [Closes(), Remembers()]
    listeners = Listeners(heard)
    assert listeners
    for event in STORY:
        listeners.emit(event)
    assert [one.heard for one in heard] == [list(STORY), list(STORY)]
    listeners.close()
    listeners.close()
    assert heard[0].num_closed == 1
    assert not listeners


def test_no_listener_is_false() -> None:
    assert not Listeners()
    assert not find_listeners([])


def test_a_listener_that_raises_is_detached_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = RaisesAt(), Remembers()
    listeners = Listeners([bad, good])
    for event in STORY:
        listeners.emit(event)
    assert (bad.heard, bad.num_closed) == (list(STORY[:2]), 1)
    assert good.heard == list(STORY)
    detached, closing = caplog.records
    assert f"{__name__}:RaisesAt" in detached.message
    assert "detached" in detached.message
    assert "raised on close" in closing.message
    assert "no disk" in caplog.text


def test_the_last_listener_detached_leaves_none() -> None:
    listeners = Listeners([RaisesAt()])
    listeners.emit(FINISHED)
    assert listeners
    listeners.emit(FINISHED)
    assert not listeners


@pytest.mark.parametrize("argument", ["name", "a=b", "c:/d"])
def test_specs_name_a_class_and_its_argument(argument: str) -> None:
    (made,) = find_listeners([f"{__name__}:Remembers={argument}"])._attached
    assert isinstance(made, Remembers)
    assert made.name == argument
    (made,) = find_listeners([f"{__name__}:Remembers"])._attached
    assert made.name == "nobody"


def test_specs_name_what_ships(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "steps.jsonl", tmp_path / "other" / "trace.json"]
    listeners = find_listeners([f"jsonl={paths[0]}", f"perfetto={paths[1]}"])
    assert [type(one) for one in listeners._attached] == [JsonlListener, PerfettoListener]
    assert all(isinstance(one, Listener) for one in listeners._attached)
    listeners.close()
    assert all(path.exists() for path in paths)


def test_specs_name_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "sglang_layered.listeners"
    installed = [
        EntryPoint("remembers", f"{__name__}:Remembers", group),
        EntryPoint("gone", f"{__name__}:Gone", group),
    ]
    monkeypatch.setattr(lookup, "entry_points", lambda *, group: installed)
    (made,) = find_listeners(["remembers=me"])._attached
    assert made.name == "me"
    with pytest.raises(ConfigError, match=r"--layered-listeners gone: .*repair the package"):
        find_listeners(["gone"])
    with pytest.raises(ConfigError, match="known: gone, jsonl, perfetto, remembers, or module:Class"):
        find_listeners(["unheard"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("csv=steps.csv", "unknown listener; known: jsonl, perfetto, or module:Class"),
        ("", "unknown listener"),
        ("jsonl", "give jsonl=PATH"),
        ("perfetto=", "give perfetto=PATH"),
        ("no.such.module:Class", "give module:Class of an importable class"),
        (f"{__name__}:Absent", "give module:Class of an importable class"),
        (f"{__name__}:REPO", "cannot be called"),
        (f"{__name__}:TakesNothing=x", f"give {__name__}:TakesNothing$"),
    ],
)
def test_bad_specs_are_refused_before_anything_is_made(spec: str, message: str) -> None:
    for look in (check_listeners, find_listeners):
        with pytest.raises(ConfigError, match=message) as refused:
            look([spec])
        assert str(refused.value).startswith(f"--layered-listeners {spec}: ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{__name__}:NoListener", r"no method on_event\(event\)"),
        (f"{__name__}:CannotBeMade", "cannot make the listener: KeyError"),
        ("jsonl=/dev/null/steps.jsonl", "give a path that can be written"),
        ("perfetto=/", "give a path that can be written"),
    ],
)
def test_listeners_that_cannot_be_made_are_refused(spec: str, message: str, tmp_path: Path) -> None:
    check_listeners([spec], may_write=False)
    with pytest.raises(ConfigError, match=message) as refused:
        find_listeners([f"perfetto={tmp_path / 'trace.json'}", spec])
    assert str(refused.value).startswith(f"--layered-listeners {spec}: ")
    json.loads((tmp_path / "trace.json").read_text())  # the one made before was closed


def test_a_check_opens_no_file(tmp_path: Path) -> None:
    check_listeners([f"jsonl={tmp_path / 'steps.jsonl'}", f"perfetto={tmp_path / 'trace.json'}"])
    assert not list(tmp_path.iterdir())


def test_jsonl_has_one_line_an_event_at_once_and_appends(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    for _ in range(2):
        listener = JsonlListener(str(path))
        for number, event in enumerate(STORY, start=1):
            before = len(path.read_text().splitlines())
            listener.on_event(event)
            assert len(path.read_text().splitlines()) == before + 1, number
        listener.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == 2 * [event_record(event) for event in STORY]


def test_jsonl_fields_are_those_of_the_event() -> None:
    step, admitted, layered = (event_record(event) for event in STORY[:3])
    assert step == {
        "event": "step_done",
        "step": 1,
        "time_s": 1.4,
        "kind": "decode",
        "start_s": 1.1,
        "duration_s": 0.3,
        "num_decode_rows": 2,
        "num_prompt_rows": 0,
        "decode": {"x": 3, "y": 8},
        "prompt": {},
        "group": None,
        "group_index": 0,
        "num_groups": 1,
        "strategy": None,
        "arrived_s": {},
        "load": None,
        "decision": None,
    }
    assert admitted == {
        "event": "cohort_admitted",
        "step": 1,
        "time_s": 1.5,
        "plan": [[0, 4], [4, 8]],
        "prompt_rows": {"a": 7},
        "prefix_tokens": {"a": 64},
    }
    assert (layered["group"], layered["prompt"]) == ([0, 4], {"a": 7})
    for event in STORY:
        assert list(event_record(event)) == ["event", *(item.name for item in fields(event))]


def test_the_document_names_every_event_and_field() -> None:
    text = (REPO / "docs" / "research.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (`step`.+) \|$", text, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)`", cells) for name, cells in rows}
    assert told == {kind.__name__: [item.name for item in fields(kind)] for kind in get_args(Event)}
    view = re.findall(r"^\| `(\w+)` \| [^`|].+\|$", text, re.MULTILINE)
    assert {item.name for item in fields(hooks.SchedulerView)} <= {*view, "last_step"}
