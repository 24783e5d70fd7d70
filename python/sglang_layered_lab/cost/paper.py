"""The paper's measurements on 2x H100 beside what is predicted for them, marked as such.

Run times are of one 8192-token prompt of Qwen3-30B-A3B by chunk size, nothing beside it (arXiv:2510.08055,
Figure 2, read from the picture: 2 % either way). Gaps are p99 under load of the same paper (Table 2 and the
table of group numbers): other prompts, queues and batches are in them, so they bound nothing and are shown
for their order.
"""

from collections.abc import Sequence
from types import MappingProxyType

from sglang_layered_lab.cost.coverage import paper_coverage
from sglang_layered_lab.cost.fit import FittedModel, Observation, fit, held_out
from sglang_layered_lab.cost.roofline import TWO_H100, Roofline
from sglang_layered_lab.cost.sizes import QWEN3_30B_A3B
from sglang_layered_lab.cost.ways import Beside, Way, predict_prompt, prompt_steps

PROMPT_TOKENS = 8192
RUN_TIME_S = MappingProxyType({512: 0.559, 1024: 0.371, 2048: 0.264, 4096: 0.233, 8192: 0.209})
P99_GAP_S = MappingProxyType(
    {
        Way("mixed", 512): 0.0484,
        Way("mixed", 2048): 0.129,
        Way("layered", 16): 0.0357,
        Way("layered", 2): 0.138,
    }
)
PAPER_BESIDE = Beside(16, 2048)  # about what ran beside a prompt in the paper's runs
ROOFLINE = Roofline(QWEN3_30B_A3B, paper_coverage, TWO_H100)


def run_times() -> dict[int, tuple[float, float, float]]:
    """Run time by chunk size: the paper's, the roofline's, and that of a fit to the other chunk sizes."""
    others = held_out(observations(), "arm", _fitted).predicted_s
    roofline = [predict_prompt(ROOFLINE, Way("chunked", chunk), PROMPT_TOKENS).ttft_s for chunk in RUN_TIME_S]
    times_s = zip(RUN_TIME_S.values(), roofline, others, strict=True)
    return dict(zip(RUN_TIME_S, times_s, strict=True))


def observations() -> list[Observation]:
    """Figure 2 as observations, a chunk size each."""
    found = []
    for chunk, seen_s in RUN_TIME_S.items():
        way = Way("chunked", chunk)
        steps = prompt_steps(QWEN3_30B_A3B.num_layers, way, PROMPT_TOKENS, Beside())
        found.append(Observation(way.name, 0, PROMPT_TOKENS, "run time", seen_s, steps))
    return found


def fitted() -> FittedModel:
    """Step times fitted to Figure 2; what it does not show is the roofline's."""
    return _fitted(observations())


def _fitted(seen: Sequence[Observation]) -> FittedModel:
    return fit(seen, QWEN3_30B_A3B, prior=TWO_H100)
