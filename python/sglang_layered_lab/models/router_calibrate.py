"""From a model folder to the RouterBias that makes its routers touch as many experts as a table says.

A model with weights is run. For one with dummy weights rows are drawn, because what its routers read of a
token is known: `router_dummy` fills it so that own logits are normal, of standard deviation 1, and every set
channel moves a logit by the weight it has there.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_bias import NUM_WORD_CHANNELS, RouterBias
from sglang_layered_lab.models.router_coverage import Coverage, RouterStates, draws_for, measure
from sglang_layered_lab.models.router_targets import DECODE, PROMPT, CoverageTable, CoverageTarget
from sglang_layered_lab.models.router_topics import plan_topics, topics_of

if TYPE_CHECKING:
    from sglang_layered_lab.models.router_record import ProbeSizes, Recording

MODEL_TYPE = "qwen3_moe"
MAX_ROUNDS = 3
FITTED, MEASURED = 0, 1  # seeds of the prompts that are fitted on, and of those that are reported
PROBE_TOKENS = 4096  # short prompts are measured on more of them
# Standard deviations of the output logits: above what the best of any other topic's tokens has by chance.
TOPIC_BONUS = 8.0
# Part of an embedding's length that a set channel has: light in the first norms, and never lost to rounding.
CHANNEL_SHARE = 0.35

DUMMY_MOST_LAYERS = 8  # that are drawn: layers differ by their seeds alone
DUMMY_CHANNEL_VALUE = 1.0  # of an embedding whose other channels have a standard deviation of 1
DUMMY_TOPIC_BONUS = 20.0  # logits, against normal ones: also a sampled token stays
ROW_NOISE = 0x5EED  # the seed's branch for drawn rows


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One target, and what was measured before and after, on the same prompts."""

    target: CoverageTarget
    uniform: Coverage
    calibrated: Coverage

    @property
    def off(self) -> float:
        """Calibrated minus target."""
        return self.calibrated.mean - self.target.coverage


@dataclass(frozen=True, slots=True)
class Calibration:
    """The bias that was found and what it does, measured on other prompts than it was fitted on."""

    bias: RouterBias
    table: CoverageTable
    rows: tuple[CoverageRow, ...]
    stays_in_topic: float  # part of the continued tokens that are of their prompt's topic
    tolerance: float

    @property
    def worst(self) -> CoverageRow:
        """The row that is farthest from its target, of those that are aimed at."""
        return max((row for row in self.rows if row.target.fit), key=lambda row: abs(row.off))

    def check(self) -> None:
        """Raise a ModelRecipeError if the worst row is out of tolerance."""
        worst = self.worst
        if abs(worst.off) > self.tolerance:
            raise ModelRecipeError(
                f"--targets: {worst.target} should touch {worst.target.coverage:.3f} of the experts, the "
                f"nearest reached is {worst.calibrated.mean:.3f} (--tolerance {self.tolerance:g}); "
                "no model was written"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a record."""
        return {
            "bias": self.bias.as_dict(),
            "source_of_targets": self.table.source,
            "coverage": [asdict(row) | {"off": row.off} for row in self.rows],
            "stays_in_topic": self.stays_in_topic,
        }


def calibrate(
    model_dir: Path,
    table: CoverageTable,
    *,
    seed: int = 0,
    num_topics: int = 8,
    tolerance: float = 0.03,
    dummy: bool = False,
    on_step: Callable[[str], object] = lambda text: None,
) -> Calibration:
    """Find the bias, or the nearest to it; `check()` of the result says whether it is within `tolerance`.

    With `dummy` the folder has a config and no weights.

    Raises:
        ModelRecipeError: the model has no routers, cannot be loaded, or is too small for what is asked.
    """
    config = _fitting_config(model_dir, table, num_topics)
    bias = RouterBias(
        seed=seed,
        num_experts=config["num_experts"],
        vocab_size=config["vocab_size"],
        first_channel=config["hidden_size"] - 1 - num_topics - NUM_WORD_CHANNELS,
        topics=plan_topics(config["vocab_size"], num_topics),
        channel_value=DUMMY_CHANNEL_VALUE,
        unit_of_layer=dict.fromkeys(range(config["num_hidden_layers"]), 1.0),
    )
    if dummy:
        return _on_drawn_rows(bias, table, tolerance, config["num_experts_per_tok"], on_step)
    return _on_a_run(model_dir, bias, table, tolerance, on_step)


def _on_a_run(
    model_dir: Path,
    bias: RouterBias,
    table: CoverageTable,
    tolerance: float,
    on_step: Callable[[str], object],
) -> Calibration:
    """Rounds of a fit, and of a run that measures it on prompts that no fit has seen; return the best."""
    from sglang_layered_lab.models.router_apply import apply_bias
    from sglang_layered_lab.models.router_fit import FIRST_GUESS, fit
    from sglang_layered_lab.models.router_record import RoutedModel

    on_step("loading the model")
    model = RoutedModel(model_dir)
    sizes = _probe_sizes(table)
    fitted_tokens = 2 * _probe_sizes(table.fitted).prompt_tokens  # starts of prompts and what follows
    fit_sizes = replace(sizes, prompt_tokens=min(fitted_tokens, sizes.prompt_tokens))
    bias = replace(
        bias, channel_value=_channel_value(model.parameters), unit_of_layer=dict.fromkeys(model.routers, 1.0)
    )
    on_step("measuring the model as it is")
    uniform = model.record(bias, sizes, MEASURED)
    apply_bias(model.parameters, bias)
    units, head_unit = model.gauge(bias)
    bias = replace(bias, scales=FIRST_GUESS, unit_of_layer=units, topic_bonus=TOPIC_BONUS * head_unit)
    found: list[Calibration] = []
    while not found or (abs(found[-1].worst.off) > tolerance and len(found) < MAX_ROUNDS):
        on_step(f"fitting, round {len(found) + 1} of at most {MAX_ROUNDS}")
        apply_bias(model.parameters, bias)
        bias = replace(bias, scales=fit(model.record(bias, fit_sizes, FITTED), bias, table, model.num_chosen))
        apply_bias(model.parameters, bias)
        calibrated = model.record(bias, sizes, MEASURED)
        found.append(_calibration(bias, table, uniform, calibrated, tolerance))
    return min(found, key=lambda calibration: abs(calibration.worst.off))


def _channel_value(parameters: Mapping[str, Any]) -> float:
    """Return a power of two, which every dtype holds as it is."""
    length = parameters["model.embed_tokens.weight"].float().norm(dim=1).mean().item()
    return float(2.0 ** math.floor(math.log2(CHANNEL_SHARE * length)))


def _on_drawn_rows(
    bias: RouterBias,
    table: CoverageTable,
    tolerance: float,
    num_chosen: int,
    on_step: Callable[[str], object],
) -> Calibration:
    """One fit, and other rows that measure it: what is drawn does not depend on the scales."""
    from sglang_layered_lab.models.router_fit import FIRST_GUESS, fit

    layers = list(bias.unit_of_layer)[:DUMMY_MOST_LAYERS]
    some = replace(bias, topic_bonus=DUMMY_TOPIC_BONUS, unit_of_layer=dict.fromkeys(layers, 1.0))
    on_step("fitting")
    begun = replace(some, scales=FIRST_GUESS)
    rows = _drawn(begun, _probe_sizes(table.fitted), FITTED, num_chosen)
    found = replace(some, scales=fit(rows, begun, table, num_chosen))
    on_step("measuring on other rows")
    sizes = _probe_sizes(table)
    uniform, calibrated = (_drawn(each, sizes, MEASURED, num_chosen) for each in (some, found))
    whole = replace(found, unit_of_layer=bias.unit_of_layer)
    return _calibration(whole, table, uniform, calibrated, tolerance)


def _calibration(
    bias: RouterBias, table: CoverageTable, uniform: "Recording", calibrated: "Recording", tolerance: float
) -> Calibration:
    def coverage(target: CoverageTarget, recording: "Recording") -> Coverage:
        states = recording.decode if target.kind == DECODE else recording.prompts
        return measure(states.chosen, draws_for(target, states, bias.seed))

    rows = tuple(CoverageRow(row, coverage(row, uniform), coverage(row, calibrated)) for row in table.rows)
    return Calibration(bias, table, rows, calibrated.stays_in_topic, tolerance)


def _fitting_config(model_dir: Path, table: CoverageTable, num_topics: int) -> dict[str, Any]:
    """The config of a model whose routers can be biased, with room for the topics and the prompts."""
    try:
        config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRecipeError(f"MODEL_DIR {model_dir} holds no model: {error!r}") from error
    problem = ""
    if model_type != MODEL_TYPE:
        problem = f"is of type {model_type!r}; only {MODEL_TYPE!r} is known here"
    elif config.get("tie_word_embeddings"):
        problem = "has tied embeddings; its head needs weights of its own"
    elif topics_of(model_dir) is not None:
        problem = "is calibrated; start from the model that it was made of"
    if problem:
        raise ModelRecipeError(f"MODEL_DIR {model_dir} {problem}")
    hidden_size, most_tokens = config["hidden_size"], config["max_position_embeddings"]
    most_topics = max(hidden_size // 4 - 1 - NUM_WORD_CHANNELS, 0)
    if num_topics > most_topics:
        raise ModelRecipeError(
            f"--topics {num_topics} is too many for the {hidden_size} channels of this model; "
            f"it has room for {most_topics}"
        )
    if table.most(PROMPT) > most_tokens:
        raise ModelRecipeError(
            f"--targets asks for {table.most(PROMPT)} prompt tokens; this model takes {most_tokens}"
        )
    return config


def _probe_sizes(table: CoverageTable) -> "ProbeSizes":
    """How many tokens a recording needs to measure all of a table's rows."""
    from sglang_layered_lab.models.router_record import ProbeSizes

    sizes = ProbeSizes()
    prompt_tokens = max(table.most(PROMPT), 1)
    return replace(
        sizes,
        num_requests=max(sizes.num_requests, 2 * table.most(DECODE)),
        num_prompts=min(max(sizes.num_prompts, PROBE_TOKENS // prompt_tokens), 4 * sizes.num_prompts),
        prompt_tokens=prompt_tokens,
    )


def _drawn(bias: RouterBias, sizes: "ProbeSizes", seed: int, num_chosen: int) -> "Recording":
    """What routers with dummy weights see and choose, for fresh rows; the same seed draws the same ones.

    A token's own logits are the same wherever it stands. Of greedy continuations the head's own logits are
    normal, too.
    """
    from sglang_layered_lab.models.router_fit import simulate
    from sglang_layered_lab.models.router_record import Recording, draw_tokens

    generator = np.random.default_rng([bias.seed, seed, ROW_NOISE])

    def states(tokens: Any) -> RouterStates:
        shape = (len(bias.unit_of_layer), *tokens.shape)
        different, places = np.unique(tokens, return_inverse=True)
        of_token = generator.standard_normal((shape[0], len(different), bias.num_experts), dtype=np.float32)
        own = of_token[:, places.reshape(tokens.shape)]
        seen = RouterStates(own, np.ones(shape, np.float32), np.zeros(own.shape, dtype=bool), tokens)
        return replace(seen, chosen=simulate(seen, bias, bias.scales, num_chosen))

    requests = draw_tokens(bias, (sizes.num_requests, sizes.num_steps), generator).numpy()
    prompts = draw_tokens(bias, (sizes.num_prompts, sizes.prompt_tokens), generator).numpy()
    return Recording(states(requests.T), states(prompts), _stays_in_topic(bias))


def _stays_in_topic(bias: RouterBias, num_draws: int = 64) -> float:
    generator = np.random.default_rng([bias.seed, ROW_NOISE])
    stays = 0
    for draw in range(num_draws):
        logits = generator.standard_normal(bias.vocab_size)
        first, end = bias.topics[draw % len(bias.topics)]
        logits[first:end] += bias.topic_bonus
        stays += first <= int(logits.argmax()) < end
    return stays / num_draws
