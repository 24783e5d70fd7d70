"""From a model folder to the RouterBias that makes its routers touch as many experts as a table says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_bias import NUM_WORD_CHANNELS, RouterBias
from sglang_layered_lab.models.router_coverage import Coverage, draws_for, measure
from sglang_layered_lab.models.router_targets import DECODE, PROMPT, CoverageTable, CoverageTarget
from sglang_layered_lab.models.router_topics import plan_topics, topics_of

if TYPE_CHECKING:
    from sglang_layered_lab.models.router_record import ProbeSizes, Recording, RoutedModel

MODEL_TYPE = "qwen3_moe"
MAX_ROUNDS = 3
FITTED, MEASURED = 0, 1  # seeds of the prompts that are fitted on, and of those that are reported
PROBE_TOKENS = 4096  # short prompts are measured on more of them
# Standard deviations of the output logits: above what the best of any other topic's tokens has by chance.
TOPIC_BONUS = 8.0
# Part of an embedding's length that a set channel has: light in the first norms, and never lost to rounding.
CHANNEL_SHARE = 0.35


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

    def check(self) -> None:
        """Raise a ModelRecipeError if the worst row is out of tolerance."""
        worst = self.worst
        if abs(worst.off) > self.tolerance:
            raise ModelRecipeError(
                f"--targets: {worst.target} should touch {worst.target.coverage:.3f} of the experts, the "
                f"nearest reached is {worst.calibrated.mean:.3f} (--tolerance {self.tolerance:g}); "
                "no model was written"
            )

    @property
    def worst(self) -> CoverageRow:
        """The row that is farthest from its target, of those that are aimed at."""
        return max((row for row in self.rows if row.target.fit), key=lambda row: abs(row.off))

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
    on_step: Callable[[str], object] = lambda text: None,
) -> Calibration:
    """Find the bias, or the nearest to it; `check()` of the result says whether it is within `tolerance`.

    Raises:
        ModelRecipeError: the model has no routers, cannot be loaded, or is too small for what is asked.
    """
    config = read_config(model_dir)
    check_fits(config, table, num_topics)
    from sglang_layered_lab.models.router_record import RoutedModel

    on_step("loading the model")
    model = RoutedModel(model_dir)
    bias = zero_bias(config, seed, num_topics, _channel_value(model.parameters), model.routers)
    return _Search(model, table, tolerance, on_step).run(bias)


def zero_bias(
    config: Mapping[str, Any], seed: int, num_topics: int, channel_value: float, layers: Iterable[int]
) -> RouterBias:
    """Return a bias that reserves its channels and pushes no expert yet."""
    return RouterBias(
        seed=seed,
        num_experts=config["num_experts"],
        vocab_size=config["vocab_size"],
        first_channel=config["hidden_size"] - 1 - num_topics - NUM_WORD_CHANNELS,
        topics=plan_topics(config["vocab_size"], num_topics),
        channel_value=channel_value,
        unit_of_layer=dict.fromkeys(layers, 1.0),
    )


def read_config(model_dir: Path) -> dict[str, Any]:
    """Return the config of a model whose routers can be biased, or raise a ModelRecipeError."""
    try:
        config: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRecipeError(f"MODEL_DIR {model_dir} holds no model: {error!r}") from error
    if model_type != MODEL_TYPE:
        raise ModelRecipeError(
            f"MODEL_DIR {model_dir} is of type {model_type!r}; only {MODEL_TYPE!r} is known here"
        )
    if config.get("tie_word_embeddings"):
        raise ModelRecipeError(
            f"MODEL_DIR {model_dir} has tied embeddings; its head needs weights of its own"
        )
    if topics_of(model_dir) is not None:
        raise ModelRecipeError(
            f"MODEL_DIR {model_dir} is calibrated; start from the model that it was made of"
        )
    return config


def check_fits(config: dict[str, Any], table: CoverageTable, num_topics: int) -> None:
    """Raise a ModelRecipeError if the model is too small for so many topics or such long prompts."""
    most_topics = config["hidden_size"] // 4 - 1 - NUM_WORD_CHANNELS
    if num_topics > most_topics:
        raise ModelRecipeError(
            f"--topics {num_topics} is too many for the {config['hidden_size']} channels of this model; "
            f"it has room for {max(most_topics, 0)}"
        )
    if table.most(PROMPT) > config["max_position_embeddings"]:
        raise ModelRecipeError(
            f"--targets asks for {table.most(PROMPT)} prompt tokens; "
            f"this model takes {config['max_position_embeddings']}"
        )


def _channel_value(parameters: Mapping[str, Any]) -> float:
    """Return a power of two, which every dtype holds as it is."""
    length = parameters["model.embed_tokens.weight"].float().norm(dim=1).mean().item()
    return float(2.0 ** math.floor(math.log2(CHANNEL_SHARE * length)))


class _Search:
    """Rounds of a fit, and of a run that measures it on prompts that no fit has seen."""

    def __init__(
        self, model: RoutedModel, table: CoverageTable, tolerance: float, on_step: Callable[[str], object]
    ) -> None:
        self.model, self.table, self.tolerance, self.on_step = model, table, tolerance, on_step
        self.sizes = probe_sizes(table)
        fitted_tokens = 2 * probe_sizes(table.fitted).prompt_tokens  # starts of prompts and what follows
        self.fit_sizes = replace(self.sizes, prompt_tokens=min(fitted_tokens, self.sizes.prompt_tokens))

    def run(self, bias: RouterBias) -> Calibration:
        """Go on until the tolerance is met or the rounds are used up; return the best."""
        from sglang_layered_lab.models.router_apply import apply_bias
        from sglang_layered_lab.models.router_fit import FIRST_GUESS, fit

        self.on_step("measuring the model as it is")
        uniform = self.model.record(bias, self.sizes, MEASURED)
        apply_bias(self.model.parameters, bias)
        units, head_unit = self.model.gauge(bias)
        bonus = TOPIC_BONUS * head_unit
        bias = replace(bias, scales=FIRST_GUESS, unit_of_layer=units, topic_bonus=bonus)
        found: list[Calibration] = []
        while not found or (abs(found[-1].worst.off) > self.tolerance and len(found) < MAX_ROUNDS):
            self.on_step(f"fitting, round {len(found) + 1} of at most {MAX_ROUNDS}")
            apply_bias(self.model.parameters, bias)
            recording = self.model.record(bias, self.fit_sizes, FITTED)
            bias = replace(bias, scales=fit(recording, bias, self.table, self.model.num_chosen))
            apply_bias(self.model.parameters, bias)
            found.append(self._measured(bias, uniform))
        return min(found, key=lambda calibration: abs(calibration.worst.off))

    def _measured(self, bias: RouterBias, uniform: Recording) -> Calibration:
        calibrated = self.model.record(bias, self.sizes, MEASURED)
        rows = measured_rows(self.table, uniform, calibrated, bias.seed)
        return Calibration(bias, self.table, rows, calibrated.stays_in_topic, self.tolerance)


def measured_rows(
    table: CoverageTable, uniform: Recording, calibrated: Recording, seed: int
) -> tuple[CoverageRow, ...]:
    """Measure each of a table's rows on two recordings."""
    return tuple(
        CoverageRow(row, _coverage(row, uniform, seed), _coverage(row, calibrated, seed))
        for row in table.rows
    )


def _coverage(target: CoverageTarget, recording: Recording, seed: int) -> Coverage:
    states = recording.decode if target.kind == DECODE else recording.prompts
    return measure(states.chosen, draws_for(target, states, seed))


def probe_sizes(table: CoverageTable) -> ProbeSizes:
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
