"""Policy `auto`: in each step as many layers as the time until the next token is due allows. Pure.

With P the time of a prompt beside nothing, D that of a decode step and n steps, the first token comes after
P + nD and the longest gap is P/n + D (paper section 4): the best n is the smallest that keeps the limit. When
prompts are admitted the same is asked of cuts along the tokens, and the way that ends first is taken.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sglang_layered.auto.deadlines import Margin, Overhead, Surprise
from sglang_layered.auto.prior import imagined_steps
from sglang_layered.auto.step_times import NAMES, StepTimes, alone, amounts, at_rest, lines
from sglang_layered.core.capability import Capability
from sglang_layered.core.layer_shape import LayerShape
from sglang_layered.core.pacing import Decision, ModelSizes, Option, PaceView, QueueView, Start, StepLoad
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.policy import TokenTargetPolicy
from sglang_layered.core.questions import Running
from sglang_layered.core.view import SchedulerView

logger = logging.getLogger(__name__)

SMALLEST_COHORT = 64
GAIN = 0.03  # by which smaller cohorts must be predicted to end sooner
ROOM = 0.97  # of its budget that a cohort may fill when it is admitted: it shall still fit some steps later
CAUTION = 0.5  # part of what the budget leaves for prompt layers that a guess may fill
STEPS_BETWEEN_WARNINGS = 1000


@dataclass(slots=True)
class AutoPolicy:
    """Keeps a limit on the time between tokens and makes prompts as fast as it allows.

    Without a limit a step may take what it would have taken at most by the paper's rule.
    """

    can: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.LEARNS, Capability.KEEPS_TBT_LIMIT, Capability.PACES_STEPS}
    )
    amounts: ClassVar[tuple[str, ...]] = NAMES

    tbt_limit_s: float | None = None
    group_tokens: int = 512
    times: StepTimes = field(default_factory=StepTimes)
    overhead: Overhead = field(default_factory=Overhead)
    surprise: Surprise = field(default_factory=Surprise)
    sizes: ModelSizes = field(default_factory=lambda: ModelSizes(1))
    _margins: dict[float | None, Margin] = field(default_factory=dict)  # of each limit, when it was in force
    _chosen: tuple[Option | None, Option | None] = (None, None)
    _rule_budget_s: float = 0.0
    _last_step_s: float = 0.0
    _fits: bool = True
    _steps_since_warning: int = STEPS_BETWEEN_WARNINGS

    def __str__(self) -> str:
        limit = "the paper's rule" if self.tbt_limit_s is None else f"{1e3 * self.tbt_limit_s:g} ms"
        return f"auto({limit})"

    @property
    def margin(self) -> Margin:
        """That of the limit in force."""
        margin = self._margins.get(self.tbt_limit_s)
        if margin is None:
            margin = self._margins[self.tbt_limit_s] = Margin()
        return margin

    def plan(self, view: SchedulerView) -> LayerGroupPlan:
        """A first plan, by the paper's rule; `next_layers` then cuts it anew before every step."""
        return TokenTargetPolicy(self.group_tokens).plan(view)

    def begin(self, sizes: ModelSizes, layers: Sequence[LayerShape], start: Start) -> None:
        """Start from what sizes and rates say of step times, and from what was learned before."""
        self.sizes = sizes
        self.times = StepTimes(imagined_steps(sizes, layers, start.rates))
        if start.learned is not None:
            self.times = self.times.resumed(start.learned)
            self.surprise = Surprise.resumed(start.learned.get("surprises", ()))

    def learned(self) -> Mapping[str, Sequence[float]]:
        """The state of the step-time model, and how wrong it was."""
        return self.times.state() | {"surprises": self.surprise.state()}

    def keep_tbt_limit(self, limit_s: float | None) -> None:
        """From now on; each limit keeps the margin that it had."""
        self.tbt_limit_s = limit_s

    def cohort_tokens(self, view: QueueView) -> int:
        """The cohort size with which all that waits is computed soonest inside the budget."""
        total = min(sum(view.prompt_lens), view.max_tokens)
        self._chosen = (None, None)
        if not view.decode_rows or total <= 0:
            return view.max_tokens
        self._rule_budget_s = self._rule_s(self._cohort(total, view))
        options = [self._option(tokens, view) for tokens in _sizes(total)]
        whole, best = options[0], min(options, key=_rank)
        if not best.fits or (whole.fits and best.ttft_s > whole.ttft_s * (1 - GAIN)):
            best = whole
        second = min((option for option in options if option is not best), key=_rank, default=None)
        self._chosen = (best, second)
        return view.max_tokens if best is whole else best.cohort_tokens

    def prompt_s(self, num_tokens: int) -> float:
        """How long a prompt takes alone, predicted."""
        return self.times.predict(alone(self.sizes, num_tokens))

    def decode_s(self, running: Running) -> float:
        """How long a step takes in which all of these decode, predicted."""
        rows, tokens = len(running), int(running.context_tokens.sum())
        return self.times.predict(at_rest(self.sizes, rows, tokens))

    def next_layers(self, view: PaceView) -> Decision:
        """The most layers whose predicted step time fits the budget, at least one; evened over the rest."""
        once, a_layer = lines(self.sizes, view.load)
        at_rest_s, a_layer_s = self.times.predict_line(once, a_layer)
        budget_s = self._budget_s(view.due_s)
        layers, fits = self._most(view.done_layers, budget_s, at_rest_s, a_layer_s)
        if fits and self.tbt_limit_s is not None and self.times.is_guess(a_layer):
            careful_s = at_rest_s + CAUTION * (budget_s - at_rest_s)
            layers, _ = self._most(view.done_layers, careful_s, at_rest_s, a_layer_s)
        weight = self.sizes.weight(view.done_layers, view.done_layers + layers)
        self._heard(fits, budget_s, at_rest_s)
        return Decision(layers, at_rest_s + weight * a_layer_s, budget_s, fits, *self._chosen)

    def observe(self, load: StepLoad, duration_s: float) -> float:
        """Learn from a step; gives what was predicted."""
        self._last_step_s = max(duration_s, 1e-9)
        predicted_s = self.times.observe(amounts(self.sizes, load), self._last_step_s)
        if load.prompt_rows and load.decode_rows and predicted_s > 0 and not self.times.latest_is_new:
            self.surprise.seen(self._last_step_s / predicted_s)
        return predicted_s

    def observe_gap(self, gap_s: float, was_planned: bool) -> None:
        """Hear the longest gap that the latest step made; after a step of ours the margin follows."""
        self.overhead.seen(gap_s, self._last_step_s)
        if self.tbt_limit_s is None or not was_planned:
            return
        if gap_s <= self.tbt_limit_s:
            self.margin.kept()
        elif self._fits:
            self.margin.missed(gap_s / self.tbt_limit_s - 1)

    def _budget_s(self, due_s: float | None) -> float:
        if self.tbt_limit_s is None or due_s is None:
            return self._rule_budget_s
        left_s = due_s - self.overhead.value_s - self.margin.part * self.tbt_limit_s
        return left_s / self.surprise.factor

    def _rule_s(self, load: StepLoad) -> float:
        """The longest step that the paper's rule would make of this cohort."""
        plan = self.plan(SchedulerView(self.sizes.num_layers, load.prompt_lens))
        at_rest_s, a_layer_s = self.times.predict_line(*lines(self.sizes, load))
        weights = [self.sizes.weight(group.start, group.end) for group in plan.groups]
        return (at_rest_s + max(weights) * a_layer_s) * (1 + 1e-9)

    def _most(
        self, done_layers: int, budget_s: float, at_rest_s: float, a_layer_s: float
    ) -> tuple[int, bool]:
        """Layers of the next step, and whether they fit."""
        left = self.sizes.num_layers - done_layers
        room = (budget_s - at_rest_s) / a_layer_s if a_layer_s > 0 else float(left)
        most = min(self.sizes.most_layers(done_layers, room), left) if budget_s > at_rest_s else 0
        if most < 1:
            return 1, False
        num_steps = -(-left // most)
        return -(-left // num_steps), True

    def _option(self, tokens: int, view: QueueView) -> Option:
        """Everything that waits, in cohorts of so many tokens and a last one of what is left.

        A cohort's cost is quadratic in the tokens before it at most, so the first, middle and last one tell
        the mean of all (Simpson's rule). The step is one of the last that is whole.
        """
        count, rest = divmod(sum(view.prompt_lens), tokens)
        before = (count - 1) * tokens
        costs = [self._costs(tokens, view, skip) for skip in ((0, before // 2, before) if before else (0,))]
        at_rest_s, a_layer_s = costs[-1]
        parts = (1 / 6, 4 / 6, 1 / 6) if before else (1.0,)
        mean_layer_s = sum(part * each for part, (_, each) in zip(parts, costs, strict=True))
        budget_s = self._budget_s(view.due_s) * (1.0 if self.tbt_limit_s is None else ROOM)
        layers, fits = self._most(0, budget_s, at_rest_s, a_layer_s)
        ttft_s = count * self._cohort_s(layers, at_rest_s, mean_layer_s)
        if rest:
            last = self._costs(rest, view, count * tokens)
            last_layers, last_fits = self._most(0, budget_s, *last)
            ttft_s, fits = ttft_s + self._cohort_s(last_layers, *last), fits and last_fits
        return Option(tokens, layers, at_rest_s + self.sizes.weight(0, layers) * a_layer_s, ttft_s, fits)

    def _cohort_s(self, layers: int, at_rest_s: float, a_layer_s: float) -> float:
        """A cohort that goes so many layers a step."""
        num_steps = -(-self.sizes.num_layers // layers)
        return num_steps * at_rest_s + self.sizes.num_layers * a_layer_s

    def _costs(self, tokens: int, view: QueueView, skip: int) -> tuple[float, float]:
        """Seconds at rest and of each layer, of a cohort after `skip` of the tokens that wait."""
        return self.times.predict_line(*lines(self.sizes, self._cohort(tokens, view, skip)))

    def _cohort(self, tokens: int, view: QueueView, skip: int = 0) -> StepLoad:
        lens: list[int] = []
        prefixes: list[int] = []
        for length, prefix in zip(view.prompt_lens, view.prefix_lens, strict=True):
            rows = min(length - min(skip, length), tokens)
            if rows > 0:
                lens.append(rows)
                prefixes.append(prefix + min(skip, length))
            skip, tokens = max(skip - length, 0), tokens - max(rows, 0)
        return StepLoad(
            view.decode_rows, view.decode_tokens, tuple(lens), tuple(prefixes), is_apart=view.is_apart
        )

    def _heard(self, fits: bool, budget_s: float, at_rest_s: float) -> None:
        """Note whether the next step fits; say so where it does not, once in a while."""
        self._fits = fits
        self._steps_since_warning += 1
        if not fits and self._steps_since_warning > STEPS_BETWEEN_WARNINGS:
            self._steps_since_warning = 0
            logger.warning(
                "The limit between tokens cannot be kept: %.1f ms are left for a step, decoding alone takes"
                " %.1f ms; the prompt goes one layer a step", 1e3 * budget_s, 1e3 * at_rest_s,
            )  # fmt: skip


def _rank(option: Option) -> tuple[bool, float]:
    """Those that fit come first, the soonest of them."""
    return not option.fits, option.ttft_s


def _sizes(total: int) -> list[int]:
    """Cohort sizes to compare: all at once, 7/8 and 3/4 of it, then ever 3/4 of the one before."""
    sizes = [total]
    size = total * 7 / 8
    while size >= SMALLEST_COHORT:
        sizes.append(int(size) // SMALLEST_COHORT * SMALLEST_COHORT)
        size = sizes[-1] * 3 / 4 if len(sizes) > 2 else total * 3 / 4
    return list(dict.fromkeys(sizes))
