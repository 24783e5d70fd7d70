"""The `perfetto` listener: the steps as a timeline that ui.perfetto.dev opens (Chrome trace events, JSON).

Tracks: the scheduler (admissions, drops, mode changes), decode, prefill through all layers, and one for each
index of a layer group. A cohort's life, from admission until it finished or was dropped, is an async span.

The device runs one step after another, so no two steps' spans overlap, on one track or across tracks. A
step's span starts at `start_s`, or where the step before it ended if that is later, since a step may be
launched while the one before it still runs. It lasts `duration_s`, but ends no later than `time_s`, when the
results were there.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_layered.core import events
from sglang_layered.files import FileListener

PROCESS = 1
SCHEDULER, DECODE, PREFILL, FIRST_GROUP = 1, 2, 3, 4  # track ids, in the order shown


class PerfettoListener(FileListener):
    """Writes a trace file over what was there.

    The file is a JSON array with one trace event a line. Until `close()` it lacks only the closing bracket,
    which the format allows, so the trace of a killed server opens too.
    """

    mode = "w"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file.write("[\n" + json.dumps(_metadata("process_name", SCHEDULER, "layered prefill")))
        self._tracks: set[int] = set()
        self._num_cohorts = 0
        self._open_cohorts: dict[int, frozenset[str]] = {}
        self._device_free_us = 0

    def on_event(self, event: events.Event) -> None:
        """Add the event to the timeline; a GroupDone adds nothing to its step."""
        match event:
            case events.StepDone():
                self._step(event)
            case events.CohortAdmitted():
                self._admitted(event)
            case events.CohortFinished():
                self._ended(event.time_s, event.request_ids)
            case events.CohortDropped():
                ids, index = list(event.request_ids), event.group_index
                self._instant(
                    "dropped", event.time_s, reason=event.reason, request_ids=ids, group_index=index
                )
                self._ended(event.time_s, event.request_ids)
            case events.RequestsLeft():
                self._instant("left", event.time_s, reason=event.reason, request_ids=list(event.request_ids))
                self._shrink(event.cohort_ids, event.request_ids)
            case events.PolicyAnswered():
                ids = list(event.request_ids)
                self._instant(event.question, event.time_s, request_ids=ids, seconds=event.seconds)
            case events.ModeChanged():
                self._instant(f"mode: {event.mode}", event.time_s, reason=event.reason)

    def close(self) -> None:
        """Complete the JSON and close the file."""
        try:
            self._file.write("\n]\n")
        finally:
            super().close()

    def _step(self, step: events.StepDone) -> None:
        start = max(_microseconds(step.start_s), self._device_free_us)
        end = min(start + _microseconds(step.duration_s), _microseconds(step.time_s))
        end = self._device_free_us = max(start, end)
        shared = {"step": step.step, "kind": step.kind}
        if step.group is not None:
            track = self._track(FIRST_GROUP + step.group_index, f"group {step.group_index}")
            name = f"layers [{step.group.start}, {step.group.end})"
            groups = {"num_groups": step.num_groups}
            self._span(track, name, start, end, {**shared, **_prompt(step), **groups})
        elif step.kind == "encoder":
            self._span(self._track(PREFILL, "prefill"), "encoder", start, end, shared)
        elif step.num_prompt_rows:
            track = self._track(PREFILL, "prefill")
            self._span(track, "prefill", start, end, {**shared, **_prompt(step)})
        if step.num_decode_rows:
            track = self._track(DECODE, "decode")
            self._span(track, "decode", start, end, {**shared, "rows": step.num_decode_rows})

    def _span(self, track: int, name: str, start: int, end: int, args: Mapping[str, Any]) -> None:
        self._write({"ph": "X", "name": name, "tid": track, "ts": start, "dur": end - start, "args": args})

    def _instant(self, name: str, time_s: float, **args: Any) -> None:
        track = self._track(SCHEDULER, "scheduler")
        time_us = _microseconds(time_s)
        self._write({"ph": "i", "s": "t", "name": name, "tid": track, "ts": time_us, "args": args})

    def _admitted(self, event: events.CohortAdmitted) -> None:
        rows, prefixes = dict(event.prompt_rows), dict(event.prefix_tokens)
        num_groups = event.plan.num_groups
        self._instant("admitted", event.time_s, rows=rows, prefix_tokens=prefixes, num_groups=num_groups)
        self._num_cohorts += 1
        self._open_cohorts[self._num_cohorts] = frozenset(rows)
        self._cohort("b", self._num_cohorts, event.time_s, rows=rows)

    def _ended(self, time_s: float, request_ids: Sequence[str]) -> None:
        """End the oldest open cohort of these requests; two chunks of one prompt may be open at a time."""
        number = self._oldest(request_ids)
        if number is not None:
            del self._open_cohorts[number]
            self._cohort("e", number, time_s)

    def _shrink(self, cohort_ids: Sequence[str], leaving: Sequence[str]) -> None:
        """The oldest open cohort of these requests goes on without some of them."""
        number = self._oldest(cohort_ids)
        if number is not None:
            self._open_cohorts[number] -= frozenset(leaving)

    def _oldest(self, request_ids: Sequence[str]) -> int | None:
        whole = frozenset(request_ids)
        return next((number for number, ids in self._open_cohorts.items() if ids == whole), None)

    def _cohort(self, phase: str, number: int, time_s: float, **args: Any) -> None:
        identity = {"cat": "cohort", "id": number, "name": "cohort", "tid": SCHEDULER}
        self._write({"ph": phase, **identity, "ts": _microseconds(time_s), "args": args})

    def _track(self, track: int, name: str) -> int:
        if track not in self._tracks:
            self._tracks.add(track)
            self._write(_metadata("thread_name", track, name))
            self._write({**_metadata("thread_sort_index", track, name), "args": {"sort_index": track}})
        return track

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(",\n" + json.dumps({"pid": PROCESS, **record}))


def _prompt(step: events.StepDone) -> dict[str, Any]:
    return {"rows": step.num_prompt_rows, "request_ids": list(step.prompt)}


def _metadata(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": track, "args": {"name": name}}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
