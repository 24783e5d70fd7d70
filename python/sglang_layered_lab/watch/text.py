"""Numbers as short text with their unit; "-" stands for nothing to tell."""

import math
from collections.abc import Callable, Iterable, Mapping

from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table

from sglang_layered_lab.watch.sample import NONE, Histogram, Rank

NOTHING = "-"
BAR_WIDTH = 30


def plain(value: float | None, unit: str = "") -> str:
    """Three digits or all before the point: 0.0123, 12.3, 12,345."""
    if value is None or not math.isfinite(value):
        return NOTHING
    places = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} {unit}".rstrip()


def seconds(value: float | None) -> str:
    """A time in us, ms or s."""
    if value is None or value >= 1 or value == 0:
        return plain(value, "s")
    return plain(value * 1e3, "ms") if value >= 1e-3 else plain(value * 1e6, "us")


def size(value: float | None, per: str = "") -> str:
    """Bytes in decimal units: 1.2 GB."""
    return NOTHING if value is None else decimal(round(value)) + per


def percent(value: float | None) -> str:
    """A ratio as a percentage."""
    return NOTHING if value is None else plain(100 * value, "%")


def share(part_and_whole: tuple[float, float]) -> str:
    """A part of a whole as a percentage with both counts; "-" of nothing."""
    part, whole = part_and_whole
    return f"{percent(part / whole)} ({part:,.0f} of {whole:,.0f})" if whole else NOTHING


def limits(values_s: Iterable[float]) -> str:
    """All limits in force: one, several where replicas differ, none."""
    return " or ".join(map(seconds, values_s))


def counts(by_reason: Mapping[str, float]) -> str:
    """How often for which reason; 0 without any."""
    return ", ".join(f"{count:,.0f} {reason}" for reason, count in by_reason.items() if count) or "0"


def mean(seen: Histogram, show: Callable[[float | None], str] = plain) -> str:
    """Mean of the observations."""
    return show(seen.mean)


def quantile_s(times: Histogram, fraction: float) -> str:
    """A quantile of times with the bucket bound that it cannot exceed, in the same unit if it has no other.

    The last bucket has no bound: "> 8 s".
    """
    found = times.quantile(fraction)
    if found is None:
        return NOTHING
    if math.isinf(found.high):
        return f"> {seconds(found.low)}"
    value, bound = seconds(found.value), seconds(found.high)
    number, unit = bound.split()
    return f"{value} (<= {number if value.endswith(f' {unit}') else bound})"


def rank_name(rank: Rank) -> str:
    """Its server behind a router, its data-parallel rank and its stage, as far as it names them."""
    numbers = [
        f"{kind}{number}" for kind, number in zip(("dp", "pp"), rank[1:], strict=True) if number != NONE
    ]
    return " ".join([*filter(None, [rank.server]), *numbers])


def progress(done_and_left: tuple[float, float]) -> Table | str:
    """A bar of the layer groups done and left; both are 0 without a cohort."""
    done, groups = done_and_left[0], sum(done_and_left)
    if not groups:
        return "no cohort in flight"
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(
        ProgressBar(total=groups, completed=done, width=BAR_WIDTH), f"{done:g} of {groups:g} layer groups"
    )
    return row
