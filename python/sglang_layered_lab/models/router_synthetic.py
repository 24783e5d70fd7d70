"""The RouterBias of a model with dummy weights: fitted to rows that are drawn, with no model run.

`routed_dummy` fills a dummy model so that what a router reads of a token is known: logits of its own are
normal, of standard deviation 1, and every set channel moves a logit by the weight it has there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_layered_lab.models.router_bias import RouterBias
from sglang_layered_lab.models.router_calibrate import (
    FITTED,
    MEASURED,
    Calibration,
    check_fits,
    measured_rows,
    probe_sizes,
    read_config,
    zero_bias,
)
from sglang_layered_lab.models.router_coverage import RouterStates
from sglang_layered_lab.models.router_fit import FIRST_GUESS, fit, simulate
from sglang_layered_lab.models.router_record import ProbeSizes, Recording, draw_tokens
from sglang_layered_lab.models.router_targets import CoverageTable

MOST_LAYERS = 8  # that are drawn: layers differ by their seeds alone
CHANNEL_VALUE = 1.0  # of an embedding whose other channels have a standard deviation of 1
TOPIC_BONUS = 20.0  # logits, against normal ones of standard deviation 1: also a sampled token stays
ROW_NOISE = 0x5EED  # the seed's branch for rows


def calibrate_dummy(
    model_dir: Path,
    table: CoverageTable,
    *,
    seed: int = 0,
    num_topics: int = 8,
    tolerance: float = 0.03,
    on_step: Callable[[str], object] = lambda text: None,
) -> Calibration:
    """Find the bias of a folder that has a config and no weights.

    Raises:
        ModelRecipeError: the model has no routers that are known here, or is too small for what is asked.
    """
    config = read_config(model_dir)
    check_fits(config, table, num_topics)
    num_layers, num_chosen = config["num_hidden_layers"], config["num_experts_per_tok"]
    layers = range(min(num_layers, MOST_LAYERS))
    bias = replace(zero_bias(config, seed, num_topics, CHANNEL_VALUE, layers), topic_bonus=TOPIC_BONUS)
    sizes, fitted_sizes = probe_sizes(table), probe_sizes(table.fitted)
    on_step("fitting")
    begun = replace(bias, scales=FIRST_GUESS)
    scales = fit(drawn(begun, fitted_sizes, FITTED, num_chosen), begun, table, num_chosen)
    on_step("measuring on other rows")
    uniform = drawn(bias, sizes, MEASURED, num_chosen)
    found = replace(bias, scales=scales)
    rows = measured_rows(table, uniform, drawn(found, sizes, MEASURED, num_chosen), seed)
    whole = replace(found, unit_of_layer=dict.fromkeys(range(num_layers), 1.0))
    return Calibration(whole, table, rows, _stays_in_topic(whole), tolerance)


def drawn(bias: RouterBias, sizes: ProbeSizes, seed: int, num_chosen: int) -> Recording:
    """What routers of such a model see and choose, for fresh rows; the same seed draws the same ones."""
    generator = np.random.default_rng([bias.seed, seed, ROW_NOISE])
    requests = draw_tokens(bias, (sizes.num_requests, sizes.num_steps), generator).numpy()
    prompts = draw_tokens(bias, (sizes.num_prompts, sizes.prompt_tokens), generator).numpy()
    decode, whole = (_states(bias, tokens, generator, num_chosen) for tokens in (requests.T, prompts))
    return Recording(decode, whole, _stays_in_topic(bias))


def _states(bias: RouterBias, tokens: Any, generator: np.random.Generator, num_chosen: int) -> RouterStates:
    """A token's own logits are the same wherever it stands."""
    shape = (len(bias.unit_of_layer), *tokens.shape)
    different, places = np.unique(tokens, return_inverse=True)
    of_token = generator.standard_normal((shape[0], len(different), bias.num_experts), dtype=np.float32)
    own = of_token[:, places.reshape(tokens.shape)]
    seen = RouterStates(own, np.ones(shape, np.float32), np.zeros(own.shape, dtype=bool), tokens)
    return replace(seen, chosen=simulate(seen, bias, bias.scales, num_chosen))


def _stays_in_topic(bias: RouterBias, num_draws: int = 64) -> float:
    """Part of greedy continuations that are of their topic, the head's own logits being normal."""
    generator = np.random.default_rng([bias.seed, ROW_NOISE])
    stays = 0
    for draw in range(num_draws):
        logits = generator.standard_normal(bias.vocab_size)
        first, end = bias.topics[draw % len(bias.topics)]
        logits[first:end] += bias.topic_bonus
        stays += first <= int(logits.argmax()) < end
    return stays / num_draws
