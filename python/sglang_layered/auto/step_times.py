"""How long a step takes, learned from those that ran. Pure; least squares by SciPy.

The time is linear in `amounts`, no coefficient is negative, and relative errors count. What is known of
decode steps and of steps with prompt rows is forgotten apart, so that a long stretch of one kind leaves the
other as it was. Beside the coefficients each kind has a scale, the median of its latest ratios of seen to
predicted: one odd step does not move it, a machine that became slower moves it within `NUM_RECENT` / 2 steps.
A step with prompt rows takes the scale of the latest steps of both kinds where that is larger: decode steps
hear of a slower machine first.

A step itself costs a few sums of Python's floats; what needs matrices is done once in `STEPS_PER_FIT` steps.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from operator import mul

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sglang_layered.core.pacing import ModelSizes, StepLoad

Amounts = tuple[float, ...]  # one of each of NAMES; Python's own floats: so few are faster without numpy

NAMES = (
    "step",  # 1 a step
    "weights",  # part of the model's experts that is read; 1 for a dense model
    "decode_rows",
    "decode_tokens",  # context of all decode rows
    "prompt_rows",  # times the part of the layers that they run
    "prompt_pairs",  # of a prompt row and a token it sees, times that part
    "prompt_layers",  # that part itself: launches
    "apart_layers",  # that part where the prompt rows run in a forward of their own
)

NUM_RECENT = 5
FORGET = 0.99  # of what is known of its kind, a step
OUTLIER = 0.2  # relative error from which a step counts less and less
PRIOR_WEIGHT = 0.02  # of an imagined step against a seen one
STEPS_PER_FIT = 16
NUM_FITTED_AT_ONCE = 24  # first steps that are each followed by a fit
NUM_TRUSTED = 6  # first steps of a kind, or of so much work, are never outliers: the prior may be wrong
LARGEST_SCALE = 8.0
PROMPT_ROWS = NAMES.index("prompt_rows")
PROMPT_PAIRS, PROMPT_LAYERS = NAMES.index("prompt_pairs"), NAMES.index("prompt_layers")
REACH = 2.0  # times the attention work of any step seen, from which a prediction is a guess


def amounts(sizes: ModelSizes, load: StepLoad) -> Amounts:
    """What is in the step."""
    once, a_layer = lines(sizes, load)
    count = load.prompt_layers
    if not count:
        return once
    return tuple([rest + count * each for rest, each in zip(once, a_layer, strict=True)])


@lru_cache(maxsize=64)  # policies ask ever again of the same few
def alone(sizes: ModelSizes, num_tokens: int) -> Amounts:
    """What a prompt beside nothing is, in all layers."""
    return amounts(sizes, StepLoad(0, 0, (num_tokens,), (0,), sizes.num_layers))


@lru_cache(maxsize=64)
def alone_lines(sizes: ModelSizes, num_tokens: int) -> tuple[Amounts, Amounts]:
    """`lines` of a prompt beside nothing."""
    return lines(sizes, StepLoad(0, 0, (num_tokens,), (0,)))


def lines(sizes: ModelSizes, load: StepLoad) -> tuple[Amounts, Amounts]:
    """Amounts of the step without prompt layers, and what each prompt layer adds."""
    decode_rows = load.decode_rows
    decode = coverage(sizes, decode_rows)
    once = (1.0, decode, float(decode_rows), float(load.decode_tokens), 0.0, 0.0, 0.0, 0.0)
    return once, _a_layer(sizes, decode_rows, load.prompt_lens, load.prefix_lens, load.is_apart)


def at_rest(sizes: ModelSizes, decode_rows: int, decode_tokens: int) -> Amounts:
    """What a step of decodes is; `lines` would look for prompts too."""
    decode = coverage(sizes, decode_rows)
    return (1.0, decode, float(decode_rows), float(decode_tokens), 0.0, 0.0, 0.0, 0.0)


@lru_cache(maxsize=64)  # a cohort asks the same in all its steps
def _a_layer(
    sizes: ModelSizes,
    decode_rows: int,
    prompt_lens: tuple[int, ...],
    prefix_lens: tuple[int, ...],
    is_apart: bool,
) -> Amounts:
    rows = sum(prompt_lens)
    if not rows:
        return (0.0,) * len(NAMES)
    together = coverage(sizes, decode_rows + rows) - coverage(sizes, decode_rows)
    added = coverage(sizes, rows) if is_apart else together
    prefixes = prefix_lens or (0,) * len(prompt_lens)
    pairs = sum(_attended(sizes, *each) for each in zip(prompt_lens, prefixes, strict=True))
    part = 1 / sizes.num_layers
    return (0.0, added * part, 0.0, 0.0, rows * part, pairs * part, part, is_apart * part)


def coverage(sizes: ModelSizes, num_rows: int) -> float:
    """Part of a layer's experts that rows read when each chooses its experts uniformly."""
    if not num_rows:
        return 0.0
    if not sizes.num_experts:
        return 1.0
    return 1 - (1 - sizes.num_experts_per_token / sizes.num_experts) ** num_rows


def _attended(sizes: ModelSizes, rows: int, before: int) -> float:
    return (before + rows) ** 2 / 2 if sizes.is_padded else rows * (before + rows / 2)


@dataclass(slots=True)
class _Latest:
    """How much longer the latest steps took than the coefficients say: the median; amounts, said, seconds."""

    steps: deque[tuple[Amounts, float, float]] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))
    scale: float = 1.0

    def add(self, row: Amounts, said_s: float, duration_s: float) -> None:
        """One more."""
        self.steps.append((row, said_s, duration_s))
        self._rescale()

    def refitted(self, coefficients: Amounts) -> None:
        """The coefficients changed: ask them anew."""
        for _ in range(len(self.steps)):
            row, _, duration_s = self.steps.popleft()
            self.steps.append((row, _dot(coefficients, row), duration_s))
        self._rescale()

    def hold(self, scale: float) -> None:
        """No more steps will come."""
        self.steps.clear()
        self.scale = scale

    def _rescale(self) -> None:
        ratios = [duration_s / said_s for _, said_s, duration_s in self.steps if said_s > 0]
        if ratios:
            self.scale = min(max(statistics.median(ratios), 1 / LARGEST_SCALE), LARGEST_SCALE)


@dataclass(slots=True)
class _Kind:
    """What is known of the steps of one kind: sums of outer products of their amounts over their times."""

    gram: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(NAMES), len(NAMES))))
    moment: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(NAMES)))
    latest: _Latest = field(default_factory=_Latest)
    waiting: list[tuple[Amounts, float, float]] = field(default_factory=list)  # amounts, seconds, weight
    num_steps: int = 0

    def add_waiting(self, forget: float = 1.0) -> None:
        """Count the steps that wait, each less than the one after it."""
        for amounts, duration_s, weight in self.waiting:
            row = np.array(amounts) / duration_s
            weighted = weight * row
            self.gram = forget * self.gram + weighted[:, None] * row
            self.moment = forget * self.moment + weighted
        self.waiting.clear()


class StepTimes:
    """The model: predicts, hears what it was, reports by how much it was wrong."""

    def __init__(self, prior: Sequence[tuple[Amounts, float]] = (), forget: float = FORGET) -> None:
        """Start from imagined steps, each with its amounts and seconds."""
        self._forget = forget
        self._kinds = {False: _Kind(), True: _Kind()}  # by whether there are prompt rows
        self._prior = _Kind(waiting=[(row, duration_s, PRIOR_WEIGHT) for row, duration_s in prior])
        self._prior.add_waiting()
        self._latest = _Latest()  # of both kinds
        self.coefficients: Amounts = (0.0,) * len(NAMES)
        self.num_steps = 0
        self.latest_is_new = True  # one of the first steps of its kind, or of so much attention work
        self._most_pairs = 0.0  # of a prompt in all layers, seen
        self._num_like_most = 0  # steps with at least a REACHth of that, since it was a guess
        if prior:
            self._fit()

    def predict(self, row: Amounts) -> float:
        """Seconds of a step with these amounts."""
        return _dot(self.coefficients, row) * self._scale(row[PROMPT_ROWS] > 0)

    def predict_line(self, at_rest: Amounts, a_layer: Amounts) -> tuple[float, float]:
        """Seconds without prompt layers, and of each prompt layer, of a step that has some."""
        scale = self._scale(True)
        return _dot(self.coefficients, at_rest) * scale, _dot(self.coefficients, a_layer) * scale

    def is_guess(self, a_layer: Amounts) -> bool:
        """Whether prompt layers hold far more attention work than any that were seen."""
        return _pairs(a_layer) > REACH * self._most_pairs

    def observe(self, row: Amounts, duration_s: float) -> float:
        """A step took so long; gives what was predicted."""
        has_prompt, said_s = row[PROMPT_ROWS] > 0, _dot(self.coefficients, row)
        kind, predicted_s = self._kinds[has_prompt], said_s * self._scale(has_prompt)
        for latest in (kind.latest, self._latest):
            latest.add(row, said_s, duration_s)
        kind.num_steps += 1
        self.latest_is_new = self._is_new(row) or kind.num_steps <= NUM_TRUSTED
        error = 0.0 if self.latest_is_new else abs(said_s * kind.latest.scale / duration_s - 1)
        kind.waiting.append((row, duration_s, min(1.0, (OUTLIER / max(error, OUTLIER)) ** 2)))
        self.num_steps += 1
        if self.num_steps <= NUM_FITTED_AT_ONCE or self.num_steps % STEPS_PER_FIT == 0:
            self._fit()
            for latest in (self._latest, *(each.latest for each in self._kinds.values())):
                latest.refitted(self.coefficients)
        return predicted_s

    def _is_new(self, row: Amounts) -> bool:
        """Whether this is one of the first steps with so much attention work; notes it."""
        if self.is_guess(row):
            self._num_like_most = 0
        self._most_pairs = max(self._most_pairs, _pairs(row))
        if not row[PROMPT_ROWS] or _pairs(row) * REACH < self._most_pairs:
            return False
        self._num_like_most += 1
        return self._num_like_most <= NUM_TRUSTED

    def settle(self, steps: Sequence[tuple[Amounts, float]]) -> None:
        """No more will come: of each kind these take in sum as long as they took."""
        self._fit()
        for has_prompt, kind in self._kinds.items():
            mine = [step for step in steps if (step[0][PROMPT_ROWS] > 0) is has_prompt]
            said_s = sum(_dot(self.coefficients, row) for row, _ in mine)
            kind.latest.hold(sum(duration_s for _, duration_s in mine) / said_s if said_s > 0 else 1.0)
        self._latest.hold(0.0)

    def scaled(self, factor: float) -> "StepTimes":
        """A copy in which every step takes `factor` times as long."""
        found = deepcopy(self)
        for latest in (found._latest, *(kind.latest for kind in found._kinds.values())):
            latest.hold(factor * latest.scale)
        return found

    def state(self) -> dict[str, list[float]]:
        """What `resumed` takes, as JSON values."""
        kinds = (self._kinds[False], self._kinds[True])
        for kind in kinds:
            kind.add_waiting(self._forget)
        return {
            "gram": [float(value) for kind in kinds for value in kind.gram.ravel()],
            "moment": [float(value) for kind in kinds for value in kind.moment],
            "most_pairs": [self._most_pairs],
        }

    def resumed(self, state: Mapping[str, Sequence[float]]) -> "StepTimes":
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
            kind.gram, kind.moment, kind.num_steps = gram, moment, NUM_TRUSTED
        found.num_steps = NUM_FITTED_AT_ONCE
        found._most_pairs = float(state.get("most_pairs", (0.0,))[0])
        found._fit()
        return found

    def _scale(self, has_prompt: bool) -> float:
        own = self._kinds[has_prompt].latest.scale
        return max(own, self._latest.scale) if has_prompt else own

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


def _pairs(row: Amounts) -> float:
    """Of a prompt in all layers, whatever part of them is meant."""
    return row[PROMPT_PAIRS] / row[PROMPT_LAYERS] if row[PROMPT_LAYERS] else 0.0


def _dot(coefficients: Amounts, row: Amounts) -> float:
    return float(sum(map(mul, coefficients, row)))
