"""What the Perfetto listener's trace shows: tracks, spans that never overlap, lives of cohorts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from listener_story import STORY, layered_step
from sglang_layered.core.events import (
    CohortAdmitted,
    CohortFinished,
    Event,
    StepDone,
)
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.listeners.perfetto import PerfettoListener


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
