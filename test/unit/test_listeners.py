"""Listeners: who hears an event, what the files then hold, and how a flag names them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered import hooks
from sglang_layered.core import lookup
from sglang_layered.core.events import (
    CohortAdmitted,
    CohortDropped,
    CohortFinished,
    Event,
    GroupDone,
    ModeChanged,
    StepDone,
)
from sglang_layered.core.plan import LayerGroup, LayerGroupPlan
from sglang_layered.errors import ConfigError
from sglang_layered.listeners.dispatch import Listener, Listeners, check_listeners, find_listeners
from sglang_layered.listeners.jsonl import JsonlListener, event_record
from sglang_layered.listeners.perfetto import PerfettoListener

REPO = Path(__file__).resolve().parents[2]
FINISHED = CohortFinished(3, 1.5, ("a",))


def layered_step(number: int, index: int, num_groups: int = 2, **changes: Any) -> StepDone:
    group = LayerGroupPlan.even(8, num_groups).groups[index]
    times = {"time_s": number + 0.9, "start_s": float(number), "duration_s": 0.5}
    rows = {"num_decode_rows": 2, "num_prompt_rows": 7, "decode": {"x": 4, "y": 9}, "prompt": {"a": 7}}
    place = {"group": group, "group_index": index, "num_groups": num_groups}
    return StepDone(**{"step": number, "kind": "layered", **times, **rows, **place, **changes})


STORY: tuple[Event, ...] = (
    StepDone(1, 1.4000004, "decode", 1.1, 0.2999996, num_decode_rows=2, decode={"x": 3, "y": 8}),
    CohortAdmitted(1, 1.5, LayerGroupPlan.even(8, 2), {"a": 7}, {"a": 64}),
    layered_step(2, 0),
    GroupDone(2, 2.9, LayerGroup(0, 4), 0, 2, ("a",)),
    layered_step(3, 1),
    GroupDone(3, 3.9, LayerGroup(4, 8), 1, 2, ("a",)),
    CohortFinished(3, 3.9, ("a",)),
    CohortAdmitted(3, 4.0, LayerGroupPlan.even(8, 4), {"b": 9, "c": 1}, {"b": 0, "c": 0}),
    CohortDropped(3, 4.1, ("b", "c"), 0, "KV pool full"),
    ModeChanged(3, 4.2, "chunked", "operator"),
    StepDone(4, 5.5, "prefill", 5.0, 0.4, num_prompt_rows=10),
)


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
    check_listeners([spec])
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


def trace_of(path: Path, events: tuple[Event, ...] | list[Event]) -> list[dict[str, Any]]:
    """The trace after close; before it only the closing bracket is missing."""
    listener = PerfettoListener(str(path))
    for event in events:
        listener.on_event(event)
        killed = path.read_text()
        json.loads(killed + "]")
    listener.close()
    trace: list[dict[str, Any]] = json.loads(path.read_text())
    assert trace == json.loads(killed + "]")
    assert len(path.read_text().splitlines()) == len(trace) + 2
    return trace


def by_track(trace: list[dict[str, Any]], phase: str) -> dict[str, list[dict[str, Any]]]:
    names = {
        record["tid"]: record["args"]["name"]
        for record in trace
        if (record["ph"], record["name"]) == ("M", "thread_name")
    }
    tracks = defaultdict(list)
    for record in trace:
        if record["ph"] == phase:
            tracks[names[record["tid"]]].append(record)
    return tracks


def test_perfetto_has_a_track_for_each_group(tmp_path: Path) -> None:
    trace = trace_of(tmp_path / "trace.json", STORY)
    spans = by_track(trace, "X")
    shown = {
        track: [(one["name"], one["ts"], one["dur"]) for one in on_track] for track, on_track in spans.items()
    }
    assert shown == {
        "decode": [
            ("decode", 1_100_000, 300_000),
            ("decode", 2_000_000, 500_000),
            ("decode", 3_000_000, 500_000),
        ],
        "group 0": [("layers [0, 4)", 2_000_000, 500_000)],
        "group 1": [("layers [4, 8)", 3_000_000, 500_000)],
        "prefill": [("prefill", 5_000_000, 400_000)],
    }
    assert spans["decode"][1]["args"]["rows"] == 2
    assert spans["group 1"][0]["args"]["rows"] == 7
    assert spans["group 1"][0]["args"]["request_ids"] == ["a"]
    instants = by_track(trace, "i")["scheduler"]
    assert [(one["name"], one["ts"]) for one in instants] == [
        ("admitted", 1_500_000),
        ("admitted", 4_000_000),
        ("dropped", 4_100_000),
        ("mode: chunked", 4_200_000),
    ]
    assert instants[2]["args"]["reason"] == "KV pool full"
    assert all({"pid", "tid", "name"} <= record.keys() for record in trace)


def lives(trace: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(begin, end) of each cohort, in the order admitted."""
    ends = {one["id"]: one["ts"] for one in trace if one["ph"] == "e"}
    return [(one["ts"], ends[one["id"]]) for one in trace if one["ph"] == "b"]


def test_perfetto_shows_the_life_of_a_cohort(tmp_path: Path) -> None:
    assert lives(trace_of(tmp_path / "trace.json", STORY)) == [
        (1_500_000, 3_900_000),
        (4_000_000, 4_100_000),
    ]


def test_chunks_of_one_prompt_are_two_cohorts_even_when_one_is_still_open(tmp_path: Path) -> None:
    plan = LayerGroupPlan.whole(8)
    trace = trace_of(
        tmp_path / "trace.json",
        (
            CohortAdmitted(1, 1.0, plan, {"a": 7}, {"a": 0}),
            CohortAdmitted(2, 2.0, plan, {"a": 7}, {"a": 7}),
            CohortFinished(1, 3.0, ("a",)),
            CohortFinished(2, 4.0, ("a",)),
            CohortFinished(2, 5.0, ("stranger",)),
        ),
    )
    assert lives(trace) == [(1_000_000, 3_000_000), (2_000_000, 4_000_000)]


def test_a_step_launched_early_is_shown_when_the_device_came_to_it(tmp_path: Path) -> None:
    early = layered_step(2, 1, start_s=1.1, duration_s=0.5, time_s=2.5)
    late_result = layered_step(3, 0, start_s=1.2, duration_s=2.0, time_s=2.6)
    trace = trace_of(
        tmp_path / "trace.json", (layered_step(1, 0, start_s=1.0, time_s=1.7), early, late_result)
    )
    shown = [(one["ts"], one["ts"] + one["dur"]) for one in by_track(trace, "X")["decode"]]
    assert shown == [(1_000_000, 1_500_000), (1_500_000, 2_000_000), (2_000_000, 2_600_000)]


seconds = st.floats(0, 1e6)


@st.composite
def steps(draw: st.DrawFn) -> StepDone:
    """A step of any kind with any times, in order or not."""
    number = draw(st.integers(0, 99))
    times = {name: draw(seconds) for name in ("time_s", "start_s", "duration_s")}
    num_groups = draw(st.integers(0, 8))
    if num_groups:
        index = draw(st.integers(0, num_groups - 1))
        return layered_step(number, index, num_groups, num_decode_rows=draw(st.integers(0, 3)), **times)
    kind = draw(st.sampled_from(["prefill", "decode"]))
    rows = {"num_prompt_rows": 5} if kind == "prefill" else {"num_decode_rows": 2}
    return StepDone(number, kind=kind, **times, **rows)


@given(events=st.lists(steps(), min_size=1, max_size=20))
def test_spans_never_overlap_and_none_is_lost(events: list[StepDone]) -> None:
    with TemporaryDirectory() as folder:
        trace = trace_of(Path(folder) / "trace.json", events)
    spans = by_track(trace, "X")
    for on_track in spans.values():
        assert all(one["dur"] >= 0 for one in on_track)
        ends = [0, *(one["ts"] + one["dur"] for one in on_track)]
        assert all(one["ts"] >= end for one, end in zip(on_track, ends, strict=False))
    in_groups = [len(on_track) for track, on_track in spans.items() if track.startswith("group")]
    assert sum(in_groups) == sum(event.group is not None for event in events)
    assert len(spans["decode"]) == sum(event.num_decode_rows > 0 for event in events)
    used = {event.group_index for event in events if event.group is not None}
    assert {track for track in spans if track.startswith("group")} == {f"group {index}" for index in used}


def test_the_document_names_every_event_and_field() -> None:
    text = (REPO / "docs" / "research.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (`step`.+) \|$", text, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)`", cells) for name, cells in rows}
    assert told == {kind.__name__: [item.name for item in fields(kind)] for kind in get_args(Event)}
    view = re.findall(r"^\| `(\w+)` \| [^`|].+\|$", text, re.MULTILINE)
    assert {item.name for item in fields(hooks.SchedulerView)} <= {*view, "last_step"}
