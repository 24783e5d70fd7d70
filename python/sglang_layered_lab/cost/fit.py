"""The scheduler's step-time model (`auto.step_times`) fitted to observed times, and its held-out errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np
import pandas as pd

from sglang_layered.auto.prior import imagined_steps
from sglang_layered.auto.step_times import NAMES, Amounts, StepTimes, amounts
from sglang_layered.core.pacing import DeviceRates, ModelSizes, StepLoad
from sglang_layered.errors import BenchError
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.roofline import Device, Roofline
from sglang_layered_lab.cost.sizes import layer_of, sizes_of
from sglang_layered_lab.models.recipe import ModelRecipe
from sglang_layered_lab.traces.run_model import learned


@dataclass(frozen=True, slots=True)
class Observation:
    """A time that was seen, and the steps in it; with `is_request` a request's own waiting is in it too."""

    arm: str
    decode_rows: int
    prompt_tokens: int
    what: str
    value_s: float
    steps: tuple[StepLoad, ...]
    is_request: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.value_s) and self.value_s > 0 and self.steps):
            raise BenchError(
                f"{self.arm}, {self.what}: {self.value_s} s and {len(self.steps)} steps is no time"
            )


@dataclass(frozen=True)
class FittedModel:
    """Step times as records showed them, of one model on one machine; experts are chosen uniformly.

    `learned` is the state of the scheduler's model, `request_s` what a request waits for besides steps. The
    rates of `prior` stand in for what no step showed. A model `carried` from one device to another takes more
    or less by the ratio of the two rooflines.
    """

    shape: ModelRecipe
    is_padded: bool
    learned: Mapping[str, Sequence[float]]
    request_s: float = 0.0
    prior: Device | None = None
    carried: tuple[Device, Device] | None = None

    @cached_property
    def sizes(self) -> ModelSizes:
        """The sizes that the scheduler's model asks for."""
        return sizes_of(self.shape, self.is_padded)

    @cached_property
    def times(self) -> StepTimes:
        """The scheduler's model, without the scale of the latest steps."""
        return StepTimes(imagined(self.sizes, self.shape, self.prior)).resumed(self.learned)

    def step_s(self, load: StepLoad) -> float:
        """Seconds of a step."""
        seen_s = self.times.predict(amounts(self.sizes, load))
        if self.carried is None:
            return seen_s
        before, after = (Roofline(self.shape, uniform_coverage, each).step_s(load) for each in self.carried)
        return seen_s * after / before if before else 0.0

    def expert_bytes(self, load: StepLoad) -> float:
        """Bytes of the experts that a step reads."""
        part = amounts(self.sizes, load)[NAMES.index("weights")]
        return part * self.shape.num_layers * layer_of(self.shape).expert_bytes

    def predict(self, seen: Observation) -> float:
        """Seconds of everything that is in an observation."""
        return sum(map(self.step_s, seen.steps)) + seen.is_request * self.request_s


def fit(
    observations: Sequence[Observation],
    shape: ModelRecipe,
    is_padded: bool = False,
    prior: Device | None = None,
) -> FittedModel:
    """The model that explains the observations; a device's rates stand in for what none of them shows.

    The waiting of requests is the median of what the steps leave of the times that hold it.

    Raises:
        BenchError: there are fewer times of steps than coefficients to find.
    """
    sizes = sizes_of(shape, is_padded)
    steps = [each for each in observations if not each.is_request]
    if prior is None and len(steps) < len(NAMES):
        raise BenchError(f"{len(steps)} observations do not tell {len(NAMES)} coefficients: record more")
    times = learned([(_row(each, sizes), each.value_s) for each in steps], imagined(sizes, shape, prior))
    found = FittedModel(shape, is_padded, times.state(), prior=prior)
    left_s = [each.value_s - found.predict(each) for each in observations if each.is_request]
    return replace(found, request_s=max(median(left_s), 0.0)) if left_s else found


def imagined(sizes: ModelSizes, shape: ModelRecipe, device: Device | None) -> list[tuple[Amounts, float]]:
    """Steps of all kinds by a device's rates, a call of a layer taking no time; none without a device."""
    if device is None:
        return []
    rates = DeviceRates(1 / device.bytes_per_s, 1 / device.flop_per_s, 0.0)
    return imagined_steps(sizes, (layer_of(shape),), rates)


def _row(seen: Observation, sizes: ModelSizes) -> Amounts:
    """All amounts of its steps together."""
    return tuple(map(sum, zip(*(amounts(sizes, load) for load in seen.steps), strict=True)))


@dataclass(frozen=True, slots=True)
class Errors:
    """Sizes of relative errors; `worst_of` names the observation that is furthest off."""

    median: float
    p90: float
    worst: float
    worst_of: str
    num: int

    @classmethod
    def of(cls, residuals: pd.DataFrame) -> "Errors":
        """Summarize what `residuals_of` gives; each observation counts once."""
        sizes = (residuals.predicted_s / residuals.value_s - 1).abs()
        last = residuals.loc[sizes.idxmax()]
        name = f"{last.arm}, {last.decode_rows} decodes, {last.what}"
        middle, p90, worst = (float(each) for each in sizes.quantile([0.5, 0.9, 1.0]))
        return cls(middle, p90, worst, name, len(sizes))


def residuals_of(observations: Iterable[Observation], model: FittedModel) -> pd.DataFrame:
    """A row an observation: its fields but for the steps, and what the model says, `predicted_s`."""
    names = ("arm", "decode_rows", "prompt_tokens", "what", "value_s")
    return pd.DataFrame(
        [
            {name: getattr(each, name) for name in names} | {"predicted_s": model.predict(each)}
            for each in observations
        ]
    )


def held_out(
    observations: Sequence[Observation],
    key: str,
    refit: Callable[[Sequence[Observation]], FittedModel],
) -> pd.DataFrame:
    """Predict every observation by a fit to those with another `key` (a field): never samples of one.

    Raises:
        BenchError: all have the same.
    """
    keys = list(dict.fromkeys(getattr(each, key) for each in observations))
    if len(keys) < 2:
        raise BenchError(f"nothing to hold out: all observations are of {keys}; record more configurations")
    found = []
    for out in keys:
        model = refit([each for each in observations if getattr(each, key) != out])
        found.append(residuals_of([each for each in observations if getattr(each, key) == out], model))
    return pd.concat(found, ignore_index=True)
