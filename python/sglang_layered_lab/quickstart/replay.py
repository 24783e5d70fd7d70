"""The page that plays a quickstart again in a browser: its times, token by token, beside each other.

A record is a quickstart's folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

from sglang_layered.errors import LabError
from sglang_layered_lab.bench.pages import render, write_page
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.trace import RequestTrace
from sglang_layered_lab.quickstart.figures import COLUMNS, measure

BEFORE_S = 0.5  # shown before the long prompt is sent
STEP_S = 0.05  # of the slider
NAMES = {"whole": "Whole prompt", "mixed": "Mixed chunks", "layered": "Layered prefill"}


@dataclass(frozen=True, slots=True)
class Played:
    """What a mode's server did, all repetitions; `made_with` are JSON values."""

    mode: str
    label: str
    repetitions: tuple[Repetition, ...]
    made_with: Mapping[str, Any]

    def middle(self) -> Repetition:
        """The repetition whose TTFT is the median; of an even number the lower one of the middle two."""
        ordered = sorted(self.repetitions, key=lambda each: measure(each)["ttft_s"])
        return ordered[(len(ordered) - 1) // 2]


def write_replay(record: Path, out: Path) -> Path:
    """Write the page of a record; the path.

    Raises:
        BenchError: it is no folder of records.
        LabError: they are none of a quickstart, or a request in them failed.
    """
    played = read_played(record)
    modes = [_mode(each) for each in played]
    [long], running = played[0].middle().traces, played[0].middle().background
    made, end_s = played[0].made_with, max(mode["end"] for mode in modes)
    page = render(
        "replay.html.j2",
        prompt_tokens=long.prompt_tokens,
        running=len(running),
        running_tokens=running[0].prompt_tokens,
        modes=modes,
        facts=list(_facts(made)),
        headings=[heading for heading, *_ in COLUMNS.values()],
        from_s=-BEFORE_S,
        until_s=ceil(end_s / STEP_S) * STEP_S,  # the slider's steps lead there, so the last token is reached
        step_s=STEP_S,
    )
    return write_page(out, page)


def read_played(record: Path) -> list[Played]:
    """Read a record, mode by mode.

    Raises:
        BenchError: it is no folder of records.
        LabError: they are none of a quickstart.
    """
    result = SweepResult.read(record.parent if record.is_file() else record)
    played = [
        Played(cell.mode, cell.label, cell.record.repetitions, cell.record.made_with) for cell in result.cells
    ]
    if any(len(each.traces) != 1 or not each.background for mode in played for each in mode.repetitions):
        raise LabError(f"{record}: a sweep, but not one of a quickstart; give a folder that quickstart wrote")
    return played


def _mode(played: Played) -> dict[str, Any]:
    """What the page shows of a mode; times in s since the prompt was sent, lanes as [time, tokens]."""
    shown = played.middle()
    [long] = shown.traces
    figures = [measure(each) for each in played.repetitions]
    middles = {name: median(each[name] for each in figures) for name in COLUMNS}
    return {
        "mode": played.mode,
        "label": played.label,
        "name": NAMES.get(played.mode, played.mode),
        "repetition": shown.index + 1,
        "repetitions": len(played.repetitions),
        "figures": [format(factor * middles[name], form) for name, (_, factor, form) in COLUMNS.items()],
        "ttft": round(measure(shown)["ttft_s"], 3),
        "prompt": _lane(long, long.sent_s),
        "lanes": [_lane(each, long.sent_s) for each in shown.background],
        "end": round(max(each.arrivals[-1].time_s for each in (long, *shown.background)) - long.sent_s, 3),
    }


def _lane(trace: RequestTrace, sent_s: float) -> list[list[float]]:
    """Times and counts from `BEFORE_S` before the sending on, counted from there."""
    times_s = [(each.time_s - sent_s, each.num_tokens) for each in trace.arrivals]
    before = max((count for time_s, count in times_s if time_s <= -BEFORE_S), default=0)
    return [[round(time_s, 3), count - before] for time_s, count in times_s if count > before]


def _facts(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where it was measured, of the first mode's record."""
    machine = made["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    yield "machine", f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {gpus}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    yield "commit", made["commit"] or "unknown"
