"""Tables for docs/cluster.md: what the policies' papers claim, and what the records here say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered_lab.paper.capacity import RATE, Observation, conclude

Cells = Sequence[Mapping[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, RECORDS = ROOT / "docs/cluster.md", ROOT / "results/cluster"
START, END = "<!-- claims: made by scripts/cluster-claims -->", "<!-- claims: end -->"
HEAD = ("policy", "the paper, over its baseline", "here", *("over chunks of 512", "chunks of 2048", "`auto`"))


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure of a paper, and how it is read off a record: at a rate, or as a capacity."""

    record: str
    policy: str
    paper: str
    figure: str
    rate_per_s: float | None = None
    is_better_low: bool = False


CLAIMS = (
    Claim("flow-prefill", "flow-prefill", "goodput up to 5.6 times", "capacity attained"),
    Claim("fair-batching", "fair-batching", "P99 TTFT 2.29 times better", "ttft.p99", 6.0, True),
    Claim("fair-batching", "fair-batching", "node capacity +20.0 %", "capacity on_line"),
    Claim("near-late", "near-late", "median TTFT -53 %", "ttft.p50", 6.0, True),
    Claim("near-late", "near-late", "capacity +26 %, median TTFT below 0.5 s", "capacity of median"),
)
STAGGERED = ("round-robin", "least-loaded", "held-at-replica", "kept-at-router", "kept-and-held")
MEDIAN_LIMIT_S = 0.5


def claims_text(folder: Path) -> str:
    """The tables, of the records in a folder.

    Raises:
        OSError: a record is missing.
    """
    records = {name: _cells(folder, name) for name in dict.fromkeys(each.record for each in CLAIMS)}
    lines = [_row(HEAD), _row(["---"] * len(HEAD))]
    for claim in CLAIMS:
        lines.append(_row(_claim_cells(claim, records[claim.record])))
    return "\n".join(
        [*lines, "", *_staggered(_cells(folder, "staggered")), "", *_thousand(_cells(folder, "thousand"))]
    )


def _claim_cells(claim: Claim, cells: Cells) -> Iterator[str]:
    own = _figure(claim, cells, claim.policy)
    yield f"`{claim.policy}`"
    yield claim.paper
    yield _words(claim, own)
    for arm in ("chunks-512", "chunks-2048", "auto"):
        other = _figure(claim, cells, arm)
        if own is None or other is None or not isinstance(own, float) or not isinstance(other, float):
            yield f"{_words(claim, other)}"
        else:
            ratio = own / other
            yield f"{ratio:.2f} ({_words(claim, other)})"


def _figure(claim: Claim, cells: Cells, arm: str) -> float | str | None:
    """A number, or in words beyond which end of the rates it lies."""
    mine = [cell for cell in cells if cell["arm"] == arm]
    if not claim.figure.startswith("capacity"):
        kind, name = claim.figure.split(".")
        cell = next(cell for cell in mine if cell["point"][RATE] == claim.rate_per_s)
        return float(_all(cell)[kind][name])
    measure = claim.figure.split()[1]
    if measure == "of":
        parts = [(cell["point"][RATE], float(_all(cell)["ttft"]["p50"] < MEDIAN_LIMIT_S)) for cell in mine]
    else:
        parts = [(cell["point"][RATE], _all(cell)[measure]) for cell in mine]
    found = conclude(Observation(rate, part) for rate, part in parts)
    if measure == "of":
        return found.rate_rps if found.high else f"above {found.rate_rps:g}"
    return found.crossing_rps or str(found)


def _words(claim: Claim, value: float | str | None) -> str:
    if value is None:
        return "none of the rates"
    unit = "/s" if claim.figure.startswith("capacity") else " ms"
    return (
        f"{value}{unit}"
        if isinstance(value, str)
        else f"{value:.1f}/s"
        if unit == "/s"
        else f"{1e3 * value:.0f} ms"
    )


def _staggered(cells: Cells) -> Iterator[str]:
    rates = list(dict.fromkeys(cell["point"][RATE] for cell in cells))
    heads = [f"{rate:g}/s: TTFT mean, p99; tokens/s" for rate in rates]
    yield _row(["requests sent", *heads])
    yield _row(["---"] * (1 + len(heads)))
    for arm in STAGGERED:
        mine = [cell for cell in cells if cell["arm"] == arm]
        shown = [
            f"{1e3 * _all(cell)['ttft']['mean']:.0f}, {1e3 * _all(cell)['ttft']['p99']:.0f} ms;"
            f" {cell['figures']['output_tokens_per_s']:.0f}"
            for cell in mine
        ]
        yield _row([arm, *shown])


def _thousand(cells: Cells) -> Iterator[str]:
    yield _row(["router, a thousand replicas", "TTFT mean, p99 (ms)", "gap p99 (ms)", "limits met"])
    yield _row(["---"] * 4)
    for cell in cells:
        ttft = _all(cell)["ttft"]
        times = f"{1e3 * ttft['mean']:.0f}, {1e3 * ttft['p99']:.0f}"
        gap = f"{1e3 * cell['figures']['gap_p99_s']:.0f}"
        yield _row([f"`{cell['arm']}`", times, gap, f"{_all(cell)['attained']:.1%}"])


def _all(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """Figures of all classes together."""
    found: Mapping[str, Any] = cell["figures"]["kinds"][-1]
    return found


def _cells(folder: Path, name: str) -> Cells:
    found: Cells = json.loads((folder / f"{name}.json").read_text())["cells"]
    return found


def _row(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_claims(document: str, folder: Path) -> str:
    """The document with its tables made anew."""
    before, _, rest = document.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{claims_text(folder)}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_claims(DOCUMENT.read_text(), RECORDS))
