"""Coverage: the part of a layer's experts that a set of rows activates. Pure."""

from collections.abc import Callable

import numpy as np

from sglang_layered.auto import step_times
from sglang_layered_lab.cost.sizes import sizes_of
from sglang_layered_lab.models.recipe import ModelRecipe

Coverage = Callable[[ModelRecipe, int, int], float]  # model, prompt rows, decode rows -> part of the experts

# By rows, real text, Qwen3-30B-A3B. Decode rows 16 to 128 are the paper's Table 1, prompts 512 to 8192 the
# bars of its Figure 2 as read from the picture; what lies outside is our own inter- and extrapolation.
OF_DECODE = {2: 0.12, 4: 0.21, 8: 0.34, 16: 0.47, 32: 0.55, 64: 0.69, 128: 0.863, 256: 0.95}
OF_PROMPT = {
    64: 0.52, 128: 0.62, 256: 0.73, 512: 0.82, 1024: 0.88, 2048: 0.923, 4096: 0.955, 8192: 0.985,
}  # fmt: skip


def uniform_coverage(model: ModelRecipe, prompt_rows: int, decode_rows: int) -> float:
    """Every row picks its experts by lot, as the scheduler assumes; what dummy weights come close to."""
    return step_times.coverage(sizes_of(model), prompt_rows + decode_rows)


def paper_coverage(model: ModelRecipe, prompt_rows: int, decode_rows: int) -> float:
    """What the paper measured: linear in the logarithm of the rows, constant beyond the last; 1 if dense.

    Rows of one prompt resemble each other and share experts, rows of a decode batch come from many requests:
    the table tells the two apart, and takes what they activate as independent where a layer has both.
    """
    if model.experts is None:
        return float(prompt_rows + decode_rows > 0)
    one_row = model.experts.num_experts_per_token / model.experts.num_experts
    kinds = ((prompt_rows, OF_PROMPT), (decode_rows, OF_DECODE))
    untouched = [1.0 - _of_rows(num_rows, {1: one_row} | table) for num_rows, table in kinds if num_rows]
    return 1.0 - float(np.prod(untouched))


def _of_rows(num_rows: int, table: dict[int, float]) -> float:
    return float(np.interp(np.log(num_rows), np.log([*table]), [*table.values()]))


COVERAGES: dict[str, Coverage] = {"uniform": uniform_coverage, "paper": paper_coverage}
