"""Coefficients fitted to observed times by non-negative least squares of relative errors; held-out errors.

Under the law `sum` a time is linear in the coefficients. Under `max` it is so once it is known for every
part whether moving or computing counts: fits from several guesses of that are repeated until it stays the
same, and the best one is taken. Observations further off than `OUTLIER` count linearly instead of by their
squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sglang_layered.errors import BenchError
from sglang_layered_lab.cost.costs import COEFFICIENTS, Law, StepCosts
from sglang_layered_lab.cost.step import StepWork

FloatArray = npt.NDArray[np.float64]
Groups = tuple[tuple[str, ...], ...]  # coefficients that share one value, group by group; the others are 0

# One model's steps do not tell a step's own time from that of its layers, each of which it calls once; nor,
# on one machine, sums over devices from FLOP.
SEPARATE: Groups = tuple((name,) for name in COEFFICIENTS if name not in ("step", "link_byte"))
OUTLIER = 0.1  # relative error
RIDGES = tuple(4.0**power for power in range(7))  # FLOP a byte: first guesses of what bounds a part
MAX_ROUNDS = 25


@dataclass(frozen=True, slots=True)
class Observation:
    """A time that was seen, and the steps in it. `weight` is how much its squared relative error counts."""

    arm: str
    decode_rows: int
    prompt_tokens: int
    what: str
    value_s: float
    works: tuple[StepWork, ...]
    num_requests: int = 0  # whose own waiting is in the time
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.value_s) and self.value_s > 0 and self.works):
            raise BenchError(
                f"{self.arm}, {self.what}: {self.value_s} s and {len(self.works)} steps is no time"
            )


@dataclass(frozen=True, slots=True)
class Residual:
    """An observation and what a model says of it."""

    observation: Observation
    predicted_s: float

    @property
    def relative(self) -> float:
        """Part by which the prediction is above (+) or below what was seen."""
        return self.predicted_s / self.observation.value_s - 1


@dataclass(frozen=True, slots=True)
class Errors:
    """Sizes of relative errors; `worst_of` names the observation that is furthest off."""

    median: float
    p90: float
    worst: float
    worst_of: str
    num: int

    @classmethod
    def of(cls, residuals: Sequence[Residual]) -> Errors:
        """Summarize; each observation counts once."""
        sizes = np.array([abs(each.relative) for each in residuals])
        last = residuals[int(sizes.argmax())].observation
        name = f"{last.arm}, {last.decode_rows} decodes, {last.what}"
        median, p90, worst = (float(each) for each in np.quantile(sizes, (0.5, 0.9, 1.0)))
        return cls(median, p90, worst, name, len(sizes))


def fit(observations: Sequence[Observation], law: Law, groups: Groups = SEPARATE) -> StepCosts:
    """The non-negative coefficients that explain the observations best.

    A coefficient whose work is in no observation, or that does not help, is 0.

    Raises:
        BenchError: there are fewer observations than coefficients.
    """
    if len(observations) < len(groups):
        raise BenchError(
            f"{len(observations)} observations do not tell {len(groups)} coefficients: record more"
        )
    guesses = [
        StepCosts(law, 1.0, 1 / ridge, 1 / ridge) for ridge in (RIDGES if law == "max" else RIDGES[:1])
    ]
    found = [_settled(observations, guess, groups) for guess in guesses]
    return min(found, key=lambda costs: _loss(observations, costs))


def residuals_of(observations: Sequence[Observation], costs: StepCosts) -> list[Residual]:
    """What these costs predict for each observation."""
    coefficients = [getattr(costs, name) for name in COEFFICIENTS]
    predicted = _amounts(observations, costs) @ np.array(coefficients)
    return [Residual(each, float(time_s)) for each, time_s in zip(observations, predicted, strict=True)]


def held_out(
    observations: Sequence[Observation],
    key: Callable[[Observation], object],
    refit: Callable[[Sequence[Observation]], StepCosts],
) -> list[Residual]:
    """Predict every observation by a fit to those with another key: whole configurations, never samples.

    Raises:
        BenchError: all have the same key.
    """
    keys = list(dict.fromkeys(key(each) for each in observations))
    if len(keys) < 2:
        raise BenchError(f"nothing to hold out: all observations are of {keys}; record more configurations")
    found: list[Residual] = []
    for out in keys:
        costs = refit([each for each in observations if key(each) != out])
        found += residuals_of([each for each in observations if key(each) == out], costs)
    return found


def _settled(observations: Sequence[Observation], costs: StepCosts, groups: Groups) -> StepCosts:
    """Fit again and again until what bounds each part stays the same; the best fit on the way."""
    best, best_loss = costs, np.inf
    amounts = _amounts(observations, costs)
    for _ in range(MAX_ROUNDS):
        costs = _solve(observations, amounts, costs.law, groups)
        loss = _loss(observations, costs)
        if loss < best_loss:
            best, best_loss = costs, loss
        before, amounts = amounts, _amounts(observations, costs)
        if np.array_equal(before, amounts):
            break
    return best


def _solve(observations: Sequence[Observation], amounts: FloatArray, law: Law, groups: Groups) -> StepCosts:
    """Least squares of relative errors, the weights of outliers lowered until they stay the same."""
    values_s = np.array([each.value_s for each in observations])
    weights = np.sqrt([each.weight for each in observations])
    columns = np.stack(
        [amounts[:, [COEFFICIENTS.index(name) for name in group]].sum(axis=1) for group in groups], 1
    )
    columns /= values_s[:, None]
    scales = np.maximum(np.abs(columns).max(axis=0), np.finfo(float).tiny)
    trust, solution = np.ones_like(values_s), np.zeros(len(groups))
    for _ in range(MAX_ROUNDS):
        both = weights * trust
        before, (solution, _) = solution, nnls(columns / scales * both[:, None], both)
        if np.allclose(before, solution, rtol=1e-9, atol=0):
            break
        errors = columns / scales @ solution - 1
        trust = (1 + (errors / OUTLIER) ** 2) ** -0.25
    values = dict.fromkeys(("byte", "flop", "attention_flop"), 0.0)
    for group, value in zip(groups, solution / scales, strict=True):
        values |= dict.fromkeys(group, float(value))
    return StepCosts(law, **values)


def _loss(observations: Sequence[Observation], costs: StepCosts) -> float:
    """Sum of softened squares of relative errors."""
    errors = np.array([each.relative for each in residuals_of(observations, costs)])
    weights = np.array([each.weight for each in observations])
    return float((weights * (np.sqrt(1 + (errors / OUTLIER) ** 2) - 1)).sum())


def _amounts(observations: Sequence[Observation], costs: StepCosts) -> FloatArray:
    """[observations, coefficients]: how much of each is in each time."""
    table = np.zeros((len(observations), len(COEFFICIENTS)))
    for row, each in zip(table, observations, strict=True):
        for work in each.works:
            seen = costs.amounts(work)
            row += [getattr(seen, name) for name in COEFFICIENTS]
        row[COEFFICIENTS.index("request")] = each.num_requests
    return table
