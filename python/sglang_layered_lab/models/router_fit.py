"""Find the scales of a RouterBias that meet a table of coverage, on recorded router inputs.

Router logits are linear in the bias, so a recording tells what other scales would choose. It does not tell
how one layer's choice changes what later layers see: the caller runs the model again with what was found.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize

from sglang_layered_lab.models.router_bias import WORD_SCALE, Bools, RouterBias, RouterScales
from sglang_layered_lab.models.router_coverage import RouterStates, choose, draws_for, measure
from sglang_layered_lab.models.router_record import Recording
from sglang_layered_lab.models.router_targets import DECODE, PROMPT, CoverageTable

# About what 64 experts, 4 of them chosen, need for the paper's table.
FIRST_GUESS = RouterScales(skew=2.8, favoured_share=0.36, locality=1.1, words=WORD_SCALE)
FIRST_STEP = np.array([0.5, 0.08, 0.4])
BOUNDS = [(0.0, 8.0), (0.0, 1.0), (0.0, 8.0)]
MAX_TRIALS = 120


def simulate(states: RouterStates, bias: RouterBias, scales: RouterScales, num_chosen: int) -> Bools:
    """Return what the routers would choose, [layers, groups, tokens, experts], with other scales."""
    channels = bias.token_channels()
    chosen = np.empty_like(states.chosen)
    for index, (layer, unit) in enumerate(bias.unit_of_layer.items()):
        pushes = unit * (channels @ bias.taste(layer).pushes(scales))
        pushed = states.channel[index][..., None] * pushes[states.tokens]
        chosen[index] = choose(states.own_logits[index] + pushed, num_chosen)
    return chosen


def fit(recording: Recording, bias: RouterBias, table: CoverageTable, num_chosen: int) -> RouterScales:
    """Return the scales whose worst row is nearest its target; the search starts at the bias' own."""
    goals = []
    for kind, states in ((DECODE, recording.decode), (PROMPT, recording.prompts)):
        rows = [row for row in table.fitted.rows if row.kind == kind]
        if rows:
            kept = states if kind == DECODE else states.windows(table.fitted.most(PROMPT))
            goals.append((kept, [(row.coverage, draws_for(row, kept, bias.seed)) for row in rows]))

    def loss(values: Any) -> float:
        off = []
        for states, rows in goals:
            chosen = simulate(states, bias, _scales(values), num_chosen)
            off += [measure(chosen, draws).mean - coverage for coverage, draws in rows]
        return float(np.sum(np.array(off) ** 4))  # a smooth way to say the worst

    start = np.array([bias.scales.skew, bias.scales.favoured_share, bias.scales.locality])
    simplex = np.vstack([start, start + np.diag(FIRST_STEP)])
    options = {"maxfev": MAX_TRIALS, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9}
    found = minimize(loss, start, method="Nelder-Mead", bounds=BOUNDS, options=options)
    return _scales(found.x)


def _scales(values: Any) -> RouterScales:
    skew, favoured_share, locality = (float(value) for value in values)
    return RouterScales(skew, favoured_share, locality, WORD_SCALE)
