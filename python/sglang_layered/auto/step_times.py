"""How long a step takes, learned from those that ran. Pure; least squares by SciPy.

The time is linear in `amounts`, no coefficient is negative, and relative errors count. What is known of
decode steps and of steps with prompt rows is forgotten apart, so that a long stretch of one kind leaves the
other as it was. Beside the coefficients each kind has a scale, the median of its latest ratios of seen to
predicted: one odd step does not move it, a machine that became slower moves it within `NUM_RECENT` / 2 steps.

A step itself costs a few sums of Python's floats; what needs matrices is done once in `STEPS_PER_FIT` steps.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from operator import mul

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sglang_layered.auto.amounts import NAMES, Amounts

NUM_RECENT = 5
FORGET = 0.99  # of what is known of its kind, a step
OUTLIER = 0.2  # relative error from which a step counts less and less
PRIOR_WEIGHT = 0.02  # of an imagined step against a seen one
STEPS_PER_FIT = 16
NUM_FITTED_AT_ONCE = 24  # first steps that are each followed by a fit
LARGEST_SCALE = 8.0
PROMPT_ROWS = NAMES.index("prompt_rows")


@dataclass(slots=True)
class _Kind:
    """What is known of the steps of one kind: sums of outer products of their amounts over their times."""

    gram: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(NAMES), len(NAMES))))
    moment: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(NAMES)))
    recent: deque[tuple[Amounts, float, float]] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))
    scale: float = 1.0
    waiting: list[tuple[Amounts, float, float]] = field(default_factory=list)  # amounts, seconds, weight

    def add_waiting(self, forget: float = 1.0) -> None:
        """Count the steps that wait, each less than the one after it."""
        for amounts, duration_s, weight in self.waiting:
            row = np.array(amounts) / duration_s
            weighted = weight * row
            self.gram = forget * self.gram + weighted[:, None] * row
            self.moment = forget * self.moment + weighted
        self.waiting.clear()

    def refitted(self, coefficients: Amounts) -> None:
        """The coefficients changed: ask them anew about the latest steps."""
        for _ in range(len(self.recent)):
            row, _, duration_s = self.recent.popleft()
            self.recent.append((row, _dot(coefficients, row), duration_s))
        self.rescale()

    def rescale(self) -> None:
        """The scale is the median ratio of the latest times to what the coefficients say of them."""
        ratios = [duration_s / said_s for _, said_s, duration_s in self.recent if said_s > 0]
        if ratios:
            self.scale = min(max(statistics.median(ratios), 1 / LARGEST_SCALE), LARGEST_SCALE)


class StepTimes:
    """The model: predicts, hears what it was, reports by how much it was wrong."""

    def __init__(self, prior: Sequence[tuple[Amounts, float]] = (), forget: float = FORGET) -> None:
        """Start from imagined steps, each with its amounts and seconds."""
        self._forget = forget
        self._kinds = {False: _Kind(), True: _Kind()}  # by whether there are prompt rows
        self._prior = _Kind(waiting=[(row, duration_s, PRIOR_WEIGHT) for row, duration_s in prior])
        self._prior.add_waiting()
        self.coefficients: Amounts = (0.0,) * len(NAMES)
        self.num_steps = 0
        if prior:
            self._fit()

    def predict(self, row: Amounts) -> float:
        """Seconds of a step with these amounts."""
        return _dot(self.coefficients, row) * self._kind(row).scale

    def predict_line(self, at_rest: Amounts, a_layer: Amounts) -> tuple[float, float]:
        """Seconds without prompt layers, and of each prompt layer, of a step that has some."""
        scale = self._kinds[True].scale
        return _dot(self.coefficients, at_rest) * scale, _dot(self.coefficients, a_layer) * scale

    def observe(self, row: Amounts, duration_s: float) -> float:
        """A step took so long; gives what was predicted."""
        kind, said_s = self._kind(row), _dot(self.coefficients, row)
        predicted_s = said_s * kind.scale
        kind.recent.append((row, said_s, duration_s))
        kind.rescale()
        error = abs(said_s * kind.scale / duration_s - 1)
        kind.waiting.append((row, duration_s, min(1.0, (OUTLIER / max(error, OUTLIER)) ** 2)))
        self.num_steps += 1
        if self.num_steps <= NUM_FITTED_AT_ONCE or self.num_steps % STEPS_PER_FIT == 0:
            self._fit()
            for each in self._kinds.values():
                each.refitted(self.coefficients)
        return predicted_s

    def settle(self, steps: Sequence[tuple[Amounts, float]]) -> None:
        """No more will come: of each kind these take in sum as long as they took."""
        self._fit()
        for kind in self._kinds.values():
            mine = [step for step in steps if self._kind(step[0]) is kind]
            said_s = sum(_dot(self.coefficients, row) for row, _ in mine)
            kind.recent.clear()
            kind.scale = sum(duration_s for _, duration_s in mine) / said_s if said_s > 0 else 1.0

    def scaled(self, factor: float) -> StepTimes:
        """A copy in which every step takes `factor` times as long."""
        found = deepcopy(self)
        for kind in found._kinds.values():
            kind.recent.clear()
            kind.scale *= factor
        return found

    def state(self) -> dict[str, list[float]]:
        """What `resumed` takes, as JSON values."""
        kinds = (self._kinds[False], self._kinds[True])
        for kind in kinds:
            kind.add_waiting(self._forget)
        return {
            "gram": [float(value) for kind in kinds for value in kind.gram.ravel()],
            "moment": [float(value) for kind in kinds for value in kind.moment],
        }

    def resumed(self, state: Mapping[str, Sequence[float]]) -> StepTimes:
        """The same prior with what another model has learned.

        Raises:
            ValueError: it is of another size.
        """
        size = len(NAMES)
        grams = np.array(state["gram"], dtype=float).reshape(2, size, size)
        moments = np.array(state["moment"], dtype=float).reshape(2, size)
        if not (np.isfinite(grams).all() and np.isfinite(moments).all()):
            raise ValueError("a value is not finite")
        found = StepTimes()
        found._prior = self._prior
        for kind, gram, moment in zip(found._kinds.values(), grams, moments, strict=True):
            kind.gram, kind.moment = gram, moment
        found.num_steps = NUM_FITTED_AT_ONCE
        found._fit()
        return found

    def _kind(self, row: Amounts) -> _Kind:
        return self._kinds[row[PROMPT_ROWS] > 0]

    def _fit(self) -> None:
        for kind in self._kinds.values():
            kind.add_waiting(self._forget)
        kinds = (self._prior, *self._kinds.values())
        gram = np.add.reduce([kind.gram for kind in kinds])
        moment = np.add.reduce([kind.moment for kind in kinds])
        seen = np.diag(gram) > 0
        scales = np.where(seen, np.sqrt(np.diag(gram)), 1.0)
        root = np.linalg.cholesky(gram / np.outer(scales, scales) + 1e-7 * np.eye(len(NAMES)))
        solution, _ = nnls(root.T, np.linalg.solve(root, moment / scales))
        self.coefficients = tuple(np.where(seen, solution / scales, 0.0).tolist())


def _dot(coefficients: Amounts, row: Amounts) -> float:
    return float(sum(map(mul, coefficients, row)))
