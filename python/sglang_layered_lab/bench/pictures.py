"""All pictures of a sweep, and why those that are missing are. It draws with `plots` and writes files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from sglang_layered_lab.bench import figure_data, plots
from sglang_layered_lab.bench.figure_data_streams import token_streams
from sglang_layered_lab.bench.sweep_result import CellResult, SweepResult
from sglang_layered_lab.bench.tables import point_text

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")
NO_DATE: Mapping[Format, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
DPI = 130


@dataclass(frozen=True, slots=True)
class Picture:
    """`stem` is its file's name without the ending; `draw` makes it."""

    stem: str
    title: str
    caption: str
    draw: Callable[[], Figure]

    def save(self, folder: Path, form: Format = "png") -> Path:
        """Draw it into a folder; the same data give the same bytes with one matplotlib."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.{form}"
        with rc_context({"svg.hashsalt": self.stem}):
            self.draw().savefig(path, dpi=DPI, metadata=NO_DATE[form])
        return path


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that has no data."""

    title: str
    why: str


def all_pictures(result: SweepResult, baseline: str) -> Iterator[Picture | Missing]:
    """Pictures over rates, then those of every point."""
    yield from pictures_over_rates(result)
    for point in result.points:
        yield from pictures_at(result, point, baseline)


def pictures_over_rates(result: SweepResult) -> Iterator[Picture | Missing]:
    """Attainment and TTFT over the request rate, one of each for every point of the other keys."""
    groups = figure_data.rate_groups(result)
    if not groups:
        why = f"the grid has no two values of {figure_data.RATE}"
        yield Missing("Attainment over the rate", why)
        yield Missing("TTFT over the rate", why)
    for group in groups:
        title, stem = _title(result, group), _stem(result, group)
        if curves := figure_data.attainment_curves(result, group):
            caption = "Requests of all rounds together that met every limit; shade: 95 % (Wilson)."
            draw = partial(plots.attainment, curves, f"{title}: requests within the limits")
            yield Picture(f"{stem}-attainment", "Attainment over the rate", caption, draw)
        else:
            yield Missing("Attainment over the rate", "no limits are set, see [slo] of the spec")
        if means := figure_data.ttft_curves(result, group):
            caption = "Means over rounds; shade: 95 %, where there are two rounds or more."
            draw = partial(plots.ttft_over_rate, means, f"{title}: time to first token")
            yield Picture(f"{stem}-ttft", "TTFT over the rate", caption, draw)


def pictures_at(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Iterator[Picture | Missing]:
    """Pareto, tokens over time, expert bytes and energy at one point."""
    for make in (_pareto, _tokens, _expert_bytes, _energy):
        yield make(result, point, baseline)


def _pareto(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Picture | Missing:
    name, data = "TTFT against TBT", figure_data.pareto_points(result, point)
    if not data.points:
        return Missing(name, "no arm has both a TTFT and a TBT")
    gaps = dict(zip(plots.GAPS, data.gaps.values(), strict=True))
    left_out = f" Left out, without a value: {', '.join(data.left_out)}." if data.left_out else ""
    caption = f"Means over rounds; the line joins the arms that no other beats.{left_out}"
    draw = partial(plots.pareto, data.points, f"{_title(result, point)}: {name}", gaps)
    return Picture(f"{_stem(result, point)}-pareto", name, caption, draw)


def _tokens(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Picture | Missing:
    name, data = "Tokens over time", token_streams(result.at(point), baseline)
    if data is None:
        return Missing(name, "no request was served to its end by all arms")
    draw = partial(
        plots.tokens_over_time, data.streams, f"{_title(result, point)}: {name.lower()}", data.since
    )
    return Picture(f"{_stem(result, point)}-tokens", name, f"Shown: {data.which}.", draw)


def _expert_bytes(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Picture | Missing:
    name, bars = "Expert bytes a request", figure_data.expert_bytes_bars(result, point)
    if not bars:
        return Missing(name, "no server counted experts (--enable-expert-traffic-metrics)")
    caption = "Bytes of activated experts by the phase of the forward, over requests; means over rounds."
    cells = result.at(point)
    if any(each.background for cell in cells for each in cell.record.repetitions):
        caption += " The streams in the background are in the bytes, not in the requests."
    caption += _not_measured(len(cells) - len(bars))
    draw = partial(plots.expert_bytes, bars, f"{_title(result, point)}: {name.lower()}")
    return Picture(f"{_stem(result, point)}-expert-bytes", name, caption, draw)


def _energy(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Picture | Missing:
    name, bars = "Energy a token", figure_data.energy_bars(result, point)
    cells = result.at(point)
    if not bars:
        return Missing(name, why_no_energy(cells))
    caption = f"Means over rounds; line: 95 %.{_not_measured(len(cells) - len(bars))}"
    draw = partial(plots.energy, bars, f"{_title(result, point)}: {name.lower()}, less is better")
    return Picture(f"{_stem(result, point)}-energy", name, caption, draw)


def why_no_energy(cells: Sequence[CellResult]) -> str:
    """The reason for which no joules were measured."""
    flags = [flag for cell in cells for flag in cell.record.spec.get("server", {}).get("flags", ())]
    if "--enable-energy-metrics" in flags:
        return "no energy counter on this machine"
    return "energy was not asked for (--enable-energy-metrics)"


def _not_measured(count: int) -> str:
    return f" Arms that were not measured: {count}." if count else ""


def _title(result: SweepResult, point: Mapping[str, Any]) -> str:
    return f"{result.title}, {point_text(point)}" if point else result.title


def _stem(result: SweepResult, point: Mapping[str, Any]) -> str:
    """The sweep's name and the point's values, with the place of a value in the grid where it is no word."""
    parts = [re.sub(r"[^A-Za-z0-9._-]", "-", result.name)]
    for key, value in point.items():
        shown = str(value)
        if not re.fullmatch(r"[A-Za-z0-9._-]+", shown):
            shown = str(result.grid[key].index(value))
        parts.append(f"{key.rpartition('.')[2]}-{shown}")
    return "-".join(parts)
