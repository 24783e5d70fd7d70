"""Numbers as short text with their unit; "-" stands for nothing to tell."""

from __future__ import annotations

import math

from rich.filesize import decimal

from sglang_layered_lab.watch.sample import Histogram, Rank, Source

NOTHING = "-"


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


def share(part: float, whole: float) -> str:
    """`part` of `whole` as a percentage with both counts; "-" of nothing."""
    return f"{percent(part / whole)} ({part:,.0f} of {whole:,.0f})" if whole else NOTHING


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


def source_name(source: Source) -> str:
    """A replica's name: its server behind a router, its data-parallel rank, both or neither."""
    return " ".join(part for part in (source.server, source.dp_rank and f"dp{source.dp_rank}") if part)


def rank_name(rank: Rank) -> str:
    """A replica's name and its pipeline stage."""
    return f"{source_name(rank.source)} pp{rank.stage}".strip()
