"""The best TTFT under a limit on the gaps of running streams: chunks, layer groups, the roofline. Pure.

"At equal TBT" is the comparison that counts: any chunk size against any number of groups, both chosen anew
for every limit, as somebody would who has to keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sglang_layered_lab.cost.predict import Prediction, predict_prompt
from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.cost.ways import Beside, Way
from sglang_layered_lab.gpu.figures import beside, figures, step_model
from sglang_layered_lab.gpu.records import Row

LIMITS_MS = (12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0, 100.0)
FAMILIES = ("chunked", "pdmux", "layered")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve the prompt beside these streams; `ttft_s` is a median, with its ends beside it."""

    family: str
    label: str
    ttft_s: float
    low_s: float
    high_s: float
    worst_gap_s: float
    p99_gap_s: float


@dataclass(frozen=True, slots=True)
class Place:
    """Prompts of so many tokens beside so many streams, and who was tried there."""

    decode_rows: int
    prompt_tokens: int
    beside: Beside
    contenders: tuple[Contender, ...]


@dataclass(frozen=True, slots=True)
class AtLimit:
    """The soonest of each family that keeps the limit; a family of which none does is missing."""

    place: Place
    limit_s: float
    best: Mapping[str, Contender]
    roof: Prediction | None

    @property
    def over_chunked(self) -> float | None:
        """TTFT of layered over that of the best chunk size."""
        if not {"layered", "chunked"} <= self.best.keys():
            return None
        return self.best["layered"].ttft_s / self.best["chunked"].ttft_s

    @property
    def over_roof(self) -> float | None:
        """TTFT of layered over the roofline's under the same limit."""
        if self.roof is None or "layered" not in self.best:
            return None
        return self.best["layered"].ttft_s / self.roof.ttft_s


def places(rows: Iterable[Row]) -> list[Place]:
    """Every prompt length beside every number of streams; beside none there is no gap to limit."""
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        if row.get("decode_rows"):
            found.setdefault((row["decode_rows"], row["prompt_tokens"]), []).append(row)
    return [
        Place(num_rows, tokens, beside(mine[0]), tuple(_contenders(mine)))
        for (num_rows, tokens), mine in sorted(found.items())
    ]


def at_limits(
    place: Place,
    shape: ModelShape | None,
    limits_ms: Sequence[float] = LIMITS_MS,
    coverage: str = "uniform",
) -> list[AtLimit]:
    """The best of each family under each limit; without a shape there is no roofline."""
    bounds = [] if shape is None else roofline(place, shape, coverage)
    return [
        AtLimit(place, limit_ms / 1e3, _best(place.contenders, limit_ms / 1e3), _roof(bounds, limit_ms / 1e3))
        for limit_ms in limits_ms
    ]


def roofline(place: Place, shape: ModelShape, coverage: str = "uniform") -> list[Prediction]:
    """The least that layered prefill can take with every number of groups."""
    model = step_model(shape, coverage)
    ways = [Way("layered", num_groups) for num_groups in range(1, shape.num_layers + 1)]
    return [predict_prompt(model, way, place.prompt_tokens, place.beside) for way in ways]


def _contenders(rows: Sequence[Row]) -> Iterator[Contender]:
    for row in rows:
        found = figures(row)
        if found.worst_gap_s is None or found.p99_gap_s is None:
            continue
        arm, groups = row["arm"], row.get("num_groups")
        family = "layered" if row["is_layered"] else "pdmux" if arm == "pdmux" else "chunked"
        label = arm if groups is None else f"{arm.removeprefix('layered-')} G={groups}"
        times_s = [run["prompt_s"][0] for run in row["repetitions"]]
        yield Contender(
            family, label, found.ttft_s, min(times_s), max(times_s), found.worst_gap_s, found.p99_gap_s
        )


def _best(contenders: Iterable[Contender], limit_s: float) -> dict[str, Contender]:
    best: dict[str, Contender] = {}
    for each in contenders:
        known = best.get(each.family)
        if each.worst_gap_s <= limit_s and (known is None or each.ttft_s < known.ttft_s):
            best[each.family] = each
    return best


def _roof(bounds: Iterable[Prediction], limit_s: float) -> Prediction | None:
    kept = [each for each in bounds if each.worst_gap_s is not None and each.worst_gap_s <= limit_s]
    return min(kept, key=lambda each: each.ttft_s, default=None)
