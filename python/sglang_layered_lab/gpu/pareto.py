"""One picture a load: TTFT against the gaps of running streams, every arm, and the roofline beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from sglang_layered_lab.bench import plots
from sglang_layered_lab.bench.compare import Point, pareto_set
from sglang_layered_lab.bench.pictures import Picture
from sglang_layered_lab.bench.plots import ParetoPoint
from sglang_layered_lab.gpu.equal import Contender, Place, places, roofline
from sglang_layered_lab.gpu.figures import shape_of
from sglang_layered_lab.gpu.profiles import PROFILES, Profile
from sglang_layered_lab.gpu.records import StageRecord

ROOF = "roofline"
MODES = {"chunked": "mixed", "pdmux": "pdmux", "layered": "layered"}
CAPTION = "Medians over repetitions at the client; roofline: the least that layered prefill takes."


def pictures(record: StageRecord) -> Iterator[Picture]:
    """A picture for every prompt length beside every number of streams."""
    profile = PROFILES[record.profile]
    for place in places(record.rows):
        title = (
            f"{_model(profile)}: a prompt of {place.prompt_tokens} tokens beside {place.decode_rows} streams"
        )
        stem = f"pareto-{profile.name}-b{place.decode_rows}-p{place.prompt_tokens}"
        draw = partial(plots.pareto, points(place, profile), title)
        yield Picture(stem, title, CAPTION, draw)


def points(place: Place, profile: Profile) -> list[ParetoPoint]:
    """Every arm, filled where no other beats it; the roofline's points are never filled."""
    seen = place.contenders
    worst = _front(seen, [each.worst_gap_s for each in seen])
    p99 = _front(seen, [each.p99_gap_s for each in seen])
    found: list[ParetoPoint] = [
        {
            "mode": MODES[each.family],
            "label": each.label,
            "ttft_s": each.ttft_s,
            "worst_tbt_s": each.worst_gap_s,
            "p99_tbt_s": each.p99_gap_s,
            "on_front": {plots.WORST: each.label in worst, plots.P99: each.label in p99},
        }
        for each in seen
    ]
    return found + _roof(place, profile)


def _roof(place: Place, profile: Profile) -> list[ParetoPoint]:
    shape = shape_of(profile)
    if shape is None:
        return []
    bounds = roofline(place, shape, profile.coverage)
    return [
        {
            "mode": ROOF,
            "label": f"G={bound.num_steps}",
            "ttft_s": bound.ttft_s,
            "worst_tbt_s": bound.worst_gap_s,
            "p99_tbt_s": bound.worst_gap_s,
            "on_front": {plots.WORST: False, plots.P99: False},
        }
        for bound in bounds
        if bound.num_steps in profile.num_groups and bound.worst_gap_s is not None
    ]


def _front(contenders: Sequence[Contender], gaps_s: Sequence[float]) -> set[str]:
    pairs = zip(contenders, gaps_s, strict=True)
    return {point.arm for point in pareto_set(Point(each.label, each.ttft_s, gap_s) for each, gap_s in pairs)}


def _model(profile: Profile) -> str:
    return "tiny model" if profile.model_path is None else profile.model_path.name
