"""All pictures of a sweep, and why those that are missing are. It draws with `plots` and writes files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from sglang_layered_lab.bench import figure_data, plots
from sglang_layered_lab.bench.sweep_result import LIMITS, CellResult, SweepResult
from sglang_layered_lab.bench.tables import point_text

Format = Literal["png", "svg", "pdf"]
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
        with rc_context({**plots.STYLE, "svg.hashsalt": self.stem}):
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
        title, stem = _names(result, group)
        limit = next((name for name in LIMITS if any(cell.known(name) for cell in result.at(group))), None)
        if limit is None:
            yield Missing("Attainment over the rate", "no limits are set, see [slo] of the spec")
        else:
            caption = "Requests of all rounds together that met every limit; shade: 95 % (Wilson)."
            rows = figure_data.over_rates(result, group, limit)
            draw = partial(plots.attainment, rows, limit, f"{title}: requests within the limits")
            yield Picture(f"{stem}-attainment", "Attainment over the rate", caption, draw)
        if len(rows := figure_data.over_rates(result, group, "ttft_mean")):
            caption = "Means over rounds; shade: 95 %, where there are two rounds or more."
            draw = partial(plots.ttft_over_rate, rows, f"{title}: time to first token")
            yield Picture(f"{stem}-ttft", "TTFT over the rate", caption, draw)


def pictures_at(result: SweepResult, point: Mapping[str, Any], baseline: str) -> Iterator[Picture | Missing]:
    """Pareto, tokens over time, expert bytes and energy at one point."""
    title, stem = _names(result, point)
    cells = result.at(point)
    yield _pareto(cells, title, stem)
    yield _tokens(cells, baseline, title, stem)
    yield _expert_bytes(cells, title, stem)
    yield _energy(cells, title, stem)


def _pareto(cells: Sequence[CellResult], title: str, stem: str) -> Picture | Missing:
    name, points = "TTFT against TBT", figure_data.pareto_points(cells)
    known = points.dropna(subset=["ttft_s", *plots.GAPS])
    if known.empty:
        return Missing(name, "no arm has both a TTFT and a TBT")
    gaps = dict(zip(plots.GAPS, figure_data.gap_scalars(cells).values(), strict=True))
    absent = points.arm[~points.index.isin(known.index)]
    left_out = f" Left out, without a value: {', '.join(absent)}." if len(absent) else ""
    caption = f"Means over rounds; the line joins the arms that no other beats.{left_out}"
    return Picture(f"{stem}-pareto", name, caption, partial(plots.pareto, known, f"{title}: {name}", gaps))


def _tokens(cells: Sequence[CellResult], baseline: str, title: str, stem: str) -> Picture | Missing:
    name, data = "Tokens over time", figure_data.token_streams(cells, baseline)
    if data is None:
        return Missing(name, "no request was served to its end by all arms")
    draw = partial(plots.tokens_over_time, data.streams, f"{title}: {name.lower()}", data.since)
    return Picture(f"{stem}-tokens", name, f"Shown: {data.which}.", draw)


def _expert_bytes(cells: Sequence[CellResult], title: str, stem: str) -> Picture | Missing:
    name, rows = "Expert bytes a request", figure_data.expert_bytes_of(cells)
    if rows.empty:
        return Missing(name, "no server counted experts (--enable-expert-traffic-metrics)")
    caption = "Bytes of activated experts by the phase of the forward, over requests; means over rounds."
    if any(cell.has_background for cell in cells):
        caption += " The streams in the background are in the bytes, not in the requests."
    draw = partial(plots.expert_bytes, rows, f"{title}: {name.lower()}")
    return Picture(f"{stem}-expert-bytes", name, caption + _not_measured(len(cells) - len(rows)), draw)


def _energy(cells: Sequence[CellResult], title: str, stem: str) -> Picture | Missing:
    name, joules = "Energy a token", list(figure_data.JOULES.values())
    rows = figure_data.arm_frame(cells, joules).dropna(subset=joules, how="all")
    if rows.empty:
        return Missing(name, why_no_energy(cells))
    caption = f"Means over rounds; line: 95 %.{_not_measured(len(cells) - len(rows))}"
    draw = partial(plots.energy, rows, f"{title}: {name.lower()}, less is better")
    return Picture(f"{stem}-energy", name, caption, draw)


def why_no_energy(cells: Sequence[CellResult]) -> str:
    """The reason for which no joules were measured."""
    flags = [flag for cell in cells for flag in cell.record.spec.get("server", {}).get("flags", ())]
    if "--enable-energy-metrics" in flags:
        return "no energy counter on this machine"
    return "energy was not asked for (--enable-energy-metrics)"


def _not_measured(count: int) -> str:
    return f" Arms that were not measured: {count}." if count else ""


def _names(result: SweepResult, point: Mapping[str, Any]) -> tuple[str, str]:
    """Title and file's stem: the sweep's name, then the point's values; by their places where no words."""
    parts = [re.sub(r"[^A-Za-z0-9._-]", "-", result.name)]
    for key, value in point.items():
        shown = str(value)
        if not re.fullmatch(r"[A-Za-z0-9._-]+", shown):
            shown = str(result.grid[key].index(value))
        parts.append(f"{key.rpartition('.')[2]}-{shown}")
    return f"{result.title}, {point_text(point)}" if point else result.title, "-".join(parts)
