"""The paper's measurements on 2x H100 beside what the model predicts for them, marked as such.

Run times are of one 8192-token prompt of Qwen3-30B-A3B by chunk size, nothing beside it: in the experts,
and in all else (arXiv:2510.08055, Figure 2, read from the picture: 2 % either way). Gaps are p99 under load
of the same paper (Table 2 and the table of group numbers): other prompts, queues and batches are in them,
so they bound nothing and are shown for their order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from sglang_layered_lab.cost.costs import Law
from sglang_layered_lab.cost.coverage import PAPER_COVERAGE
from sglang_layered_lab.cost.devices import TWO_H100
from sglang_layered_lab.cost.fit import Groups, Observation, fit, held_out, residuals_of
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.shape import QWEN3_30B_A3B
from sglang_layered_lab.cost.step import StepWork
from sglang_layered_lab.cost.ways import NOTHING, Way, prompt_steps

PROMPT_TOKENS = 8192
EXPERTS_S = MappingProxyType({512: 0.311, 1024: 0.185, 2048: 0.115, 4096: 0.092, 8192: 0.084})
REST_S = MappingProxyType({512: 0.248, 1024: 0.186, 2048: 0.149, 4096: 0.141, 8192: 0.125})
P99_GAP_S = MappingProxyType(
    {
        Way("mixed", 512): 0.0484,
        Way("mixed", 2048): 0.129,
        Way("layered", 16): 0.0357,
        Way("layered", 2): 0.138,
    }
)
# What these ten times can tell apart; no decode step is among them.
RATES: Groups = (("byte",), ("flop", "attention_flop"), ("prompt_layer_call",))


@dataclass(frozen=True, slots=True)
class PaperRow:
    """Run time by chunk size: the paper's, the roofline's, and that of a fit to the other chunk sizes."""

    chunk_tokens: int
    paper_s: float
    roofline_s: float
    held_out_s: float


def compare_run_times(law: Law = "sum") -> list[PaperRow]:
    """Figure 2 next to both predictions."""
    seen = observations()
    columns = (
        [each.value_s for each in seen],
        [each.predicted_s for each in residuals_of(seen, TWO_H100.costs())],
        [
            each.predicted_s
            for each in held_out(seen, lambda each: each.arm, partial(fit, law=law, groups=RATES))
        ],
    )
    whole = ([sum(pair) for pair in zip(each[::2], each[1::2], strict=True)] for each in columns)
    return [PaperRow(*each) for each in zip(EXPERTS_S, *whole, strict=True)]


def observations() -> list[Observation]:
    """Figure 2 as observations: experts and the rest of each chunk size, in turns."""
    model = roofline()
    found = []
    for chunk in EXPERTS_S:
        way = Way("chunked", chunk)
        works = [
            model.work(step) for step in prompt_steps(model.shape.num_layers, way, PROMPT_TOKENS, NOTHING)
        ]
        for what, value_s, parts in (
            ("experts", EXPERTS_S[chunk], [_experts(work) for work in works]),
            ("rest", REST_S[chunk], [_rest(work) for work in works]),
        ):
            found.append(Observation(way.name, 0, PROMPT_TOKENS, what, value_s, tuple(parts)))
    return found


def roofline() -> StepModel:
    """The paper's model and machine, physical rates only."""
    return StepModel(QWEN3_30B_A3B, PAPER_COVERAGE, TWO_H100.costs())


def fitted(law: Law = "sum") -> StepModel:
    """The paper's model with rates fitted to Figure 2."""
    return StepModel(QWEN3_30B_A3B, PAPER_COVERAGE, fit(observations(), law, RATES))


def _experts(work: StepWork) -> StepWork:
    parts = tuple(part for part in work.parts if part.kind == "experts")
    return StepWork(parts, 0, 0, 0, 0.0)


def _rest(work: StepWork) -> StepWork:
    return replace(work, parts=tuple(part for part in work.parts if part.kind != "experts"))
