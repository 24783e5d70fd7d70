"""One replica's scheduler in simulated time, by the rules of `scheduler.loop` and `scheduler.overtaking`.

A cohort in flight goes a layer group a step beside everybody who decodes; short prompts, or those that the
policy names, go before it at a group's edge; prompts beside nobody run whole. What a policy answers is held
inside the bounds that a server has.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import PaceView, QueueView, StepLoad, StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.view import SchedulerView
from sglang_layered_lab.cluster.asked import Asked, pass_over
from sglang_layered_lab.cluster.jobs import Job
from sglang_layered_lab.cluster.spec import ReplicaSpec
from sglang_layered_lab.cluster.steps import Steps

IDLE_S = 1e-3  # after which a scheduler with nothing to run asks again


@dataclass(slots=True)
class Flight:
    """A cohort on its way through the layers: requests with the prompt rows that each has in it."""

    pieces: list[tuple[Job, int]]
    prefixes: tuple[int, ...]
    ends: list[int]  # of its layer groups, where a plan says them
    done_layers: int = 0
    has_run: bool = False  # since the last one that went before it
    times_overtaken: int = 0

    @property
    def lens(self) -> tuple[int, ...]:
        """Rows of each prompt."""
        return tuple(rows for _, rows in self.pieces)

    @property
    def num_rows(self) -> int:
        """Of all prompts."""
        return sum(rows for _, rows in self.pieces)


@dataclass(slots=True)
class Step:
    """The step that runs now."""

    load: StepLoad
    took_s: float
    decoding: list[Job]
    flight: Flight | None
    end_layer: int


@dataclass(slots=True)
class Tally:
    """What a replica counts."""

    num_steps: int = 0
    busy_s: float = 0.0
    gaps: Counter[float] = field(default_factory=Counter)  # seconds between two tokens of a request


class Replica:
    """A server that is given requests and asked for its steps; it knows the others nothing of."""

    def __init__(
        self, steps: Steps, policy: GroupPolicy, spec: ReplicaSpec, tbt_limit_s: float | None
    ) -> None:
        self.steps, self.policy, self.spec = steps, policy, spec
        self.tbt_limit_s = tbt_limit_s
        self.waiting: list[Job] = []
        self.flights: list[Flight] = []
        self.decoding: list[Job] = []
        self.tally = Tally()
        self.wake_s: float | None = None  # while it holds prompts back and has nothing else to do
        self.asked = Asked(policy, spec, steps.sizes.num_layers)
        self._now: Step | None = None
        self._mute: deque[list[Job]] = deque()  # tokens computed and not yet out
        can = capabilities_of(policy)
        on_steps = cast("StepPolicy", policy)
        self._pacer = on_steps if Capability.PACES_STEPS in can else None
        self._learner = on_steps if Capability.LEARNS in can else None
        self._keeper = on_steps if Capability.KEEPS_TBT_LIMIT in can else None
        self._num_layers = steps.sizes.num_layers
        self._overtakes = spec.max_parked > 0

    @property
    def is_busy(self) -> bool:
        """True while a step runs."""
        return self._now is not None

    @property
    def has_prompts(self) -> bool:
        """True while prompts wait or are in flight."""
        return bool(self.waiting or self.flights)

    @property
    def work_tokens(self) -> float:
        """What a router may know of its load: prompt tokens to compute, and a token for each that decodes."""
        part = [each.num_rows * (1 - each.done_layers / self._num_layers) for each in self.flights]
        return sum(each.to_compute for each in self.waiting) + sum(part) + len(self.decoding)

    def begin_step(self, now_s: float) -> float | None:
        """Choose the next step; gives when it ends, or None while there is nothing to run."""
        self.wake_s = None
        flight = self._turn(now_s)
        decoding = (
            self.decoding if flight is None else self.asked.decoding(self.decoding, self.flights, now_s)
        )
        if flight is None and not decoding:
            if not self.decoding:
                self._speak_all(now_s)
            return None
        load, end = StepLoad(len(decoding), sum([each.context for each in decoding])), 0
        if flight is not None:
            end = self._end_of(flight, load, now_s)
            layers = self.steps.sizes.weight(flight.done_layers, end)
            is_apart = bool(decoding) and self.steps.is_apart
            rest = (flight.lens, flight.prefixes, layers, is_apart)
            load = StepLoad(load.decode_rows, load.decode_tokens, *rest)
        took_s = self.steps.step_s(load)
        self._now = Step(load, took_s, decoding, flight, end)
        return now_s + took_s + self.steps.between_s

    def end_step(self, now_s: float) -> None:
        """The step that runs has ended: tokens come out."""
        step, self._now = self._now, None
        assert step is not None
        self.tally.num_steps += 1
        self.tally.busy_s += step.took_s
        if self._learner is not None:
            self._learner.observe(step.load, step.took_s)
        for job in step.decoding:
            job.left -= 1
            job.context += 1
        heard = [job for job in step.decoding if job.left >= 0]
        new = [] if step.flight is None else self._advanced(step.flight, step.end_layer, now_s)
        is_mixed = bool(step.load.prompt_rows and step.load.decode_rows)
        self._mute.append([*heard, *new])
        while len(self._mute) > self.steps.delay_steps:
            self._speak(self._mute.popleft(), is_mixed, now_s)
        self.decoding += new
        least = -self.steps.idle_rows
        if any(job.left <= least for job in self.decoding):
            self.decoding = [job for job in self.decoding if job.left > least]

    def _turn(self, now_s: float) -> Flight | None:
        """The cohort whose step is next, admitted if need be."""
        if self.flights:
            top = self.flights[-1]
            if len(self.flights) <= self.spec.max_parked and top.has_run and top.done_layers:
                first = self.asked.before(self.flights, self.waiting, self.decoding, now_s)[: self._room]
                if first:
                    top.has_run, top.times_overtaken = False, top.times_overtaken + 1
                    self.flights.append(self._cohort(first, self.spec.cohort_tokens, now_s))
            return self.flights[-1]
        if not self.waiting or not self._room:
            return None
        hold_s = self.asked.hold(self.waiting, self.decoding, now_s)
        if hold_s > 0:
            self.wake_s = now_s + hold_s
            return None
        chosen = self.asked.order(self.waiting, self.decoding, now_s)
        if not chosen:
            self.wake_s = now_s + IDLE_S
            return None
        self.flights.append(self._cohort(chosen, self._cohort_tokens(chosen, now_s), now_s))
        return self.flights[-1]

    @property
    def _room(self) -> int:
        """Requests that may still be admitted."""
        inflight = sum(len(each.pieces) for each in self.flights)
        return max(self.spec.max_running - len(self.decoding) - inflight, 0)

    def _cohort_tokens(self, chosen: Sequence[Job], now_s: float) -> int:
        most = self.spec.cohort_tokens
        if self._pacer is None:
            return most
        context = sum([each.context for each in self.decoding])
        view = QueueView(
            tuple([each.to_compute for each in chosen]),
            tuple([each.done_tokens for each in chosen]),
            len(self.decoding), context, self._due_s(now_s), most, self.steps.is_apart,
        )  # fmt: skip
        return max(min(self._pacer.cohort_tokens(view), most), 1)

    def _cohort(self, chosen: Sequence[Job], most: int, now_s: float) -> Flight:
        """Take prompts from the queue, the last one cut where it does not fit."""
        pieces: list[tuple[Job, int]] = []
        for job in chosen[: self._room]:
            if most <= 0:
                break
            pieces.append((job, min(job.to_compute, most)))
            most -= pieces[-1][1]
        taken = {id(job) for job, _ in pieces}
        self.waiting = [job for job in self.waiting if id(job) not in taken]
        pass_over(self.waiting)
        prefixes = tuple(job.done_tokens for job, _ in pieces)
        flight = Flight(pieces, prefixes, [])
        if self._pacer is None and (self.decoding or self._may_wait(flight)):
            context = sum([each.context for each in self.decoding])
            loads = (self._num_layers, flight.lens, prefixes, len(self.decoding), context, len(self.waiting))
            flight.ends = [group.end for group in self.policy.plan(SchedulerView(*loads)).groups]
        return flight

    def _may_wait(self, flight: Flight) -> bool:
        """Whether others may go before it: then it is cut though nobody decodes."""
        return self._overtakes and (self.asked.preempts or flight.num_rows > self.asked.short_tokens)

    def _end_of(self, flight: Flight, load: StepLoad, now_s: float) -> int:
        """The layer before which its next step ends."""
        last, start = self._num_layers, flight.done_layers
        if not (self.decoding or self._may_wait(flight)):
            return last
        if self._pacer is not None:
            rest = (flight.lens, flight.prefixes, 0.0, bool(load.decode_rows) and self.steps.is_apart)
            view = PaceView(StepLoad(load.decode_rows, load.decode_tokens, *rest), start, self._due_s(now_s))
            return min(start + max(self._pacer.next_layers(view).layers, 1), last)
        return next((end for end in flight.ends if end > start), last)

    def _advanced(self, flight: Flight, end: int, now_s: float) -> list[Job]:
        """A cohort has been computed up to a layer: gives those whose prompt is done."""
        flight.done_layers, flight.has_run = end, True
        if end < self._num_layers:
            return []
        self.flights.remove(flight)
        new = []
        for job, rows in flight.pieces:
            job.done_tokens += rows
            if job.to_compute:
                self.waiting.insert(0, job)  # its next chunk goes first
            else:
                job.left, job.context, job.ready_s = job.output_tokens - 1, job.prompt_tokens, now_s
                new.append(job)
        return new

    def _speak_all(self, now_s: float) -> None:
        while self._mute:
            self._speak(self._mute.popleft(), False, now_s)

    def _speak(self, spoken: Sequence[Job], is_mixed: bool, now_s: float) -> None:
        """Tokens are handed out."""
        seen = [(job.last_s, job.is_measured) for job in spoken if job.num_heard]
        for job in spoken:
            job.hear(now_s)
        worst_s = 0.0
        for (last_s, is_measured), number in Counter(seen).items():  # most have theirs at one time
            worst_s = max(worst_s, now_s - last_s)
            if is_measured:
                self.tally.gaps[round(now_s - last_s, 4)] += number
        if worst_s and self._keeper is not None:
            self._keeper.observe_gap(worst_s, is_mixed)

    def _due_s(self, now_s: float) -> float | None:
        if self._keeper is None or self.tbt_limit_s is None:
            return None
        limit_s = self.tbt_limit_s
        dues = [job.last_s + limit_s - now_s for job in self.decoding if job.num_heard]
        return min((due for due in dues if due > 0), default=limit_s)
