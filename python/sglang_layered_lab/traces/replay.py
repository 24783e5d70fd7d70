"""What another policy would have made of a recorded run: the same requests, steps as long as predicted.

The step-time model is fitted to the trace's own steps; the scheduler is a model of `scheduler.loop`: prompts
in order, one cohort in flight, decode in every step, prompts beside nothing whole, but for what a policy says
otherwise (`asked`). It knows no KV pressure and no prefix cache: what the trace found there stays found.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import cast

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import PaceView, QueueView, StepLoad, StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.questions import SloClass
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import BenchError
from sglang_layered_lab.traces.asked import NAP_S, Asked
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import TracedStep


@dataclass(slots=True)
class Request:
    """A request of a run, recorded or replayed: when it came and when its tokens did, in seconds.

    `prompt_tokens` are to compute, after `prefix_tokens`; it asks for `output_tokens`.
    """

    request_id: str
    arrived_s: float
    prompt_tokens: int
    prefix_tokens: int = 0
    output_tokens: int = 1
    tokens_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.tokens_s[0] - self.arrived_s

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens."""
        return [later - earlier for earlier, later in pairwise(self.tokens_s)]


def requests_of(steps: Sequence[TracedStep]) -> list[Request]:
    """The requests of a trace whose prompts it holds whole, oldest first.

    Raises:
        BenchError: there are none.
    """
    found: dict[str, Request] = {}
    for each in steps:
        if each.begins_prompt:
            for (name, rows), prefix in zip(each.prompt.items(), each.load.prefix_lens, strict=True):
                request = found.setdefault(name, Request(name, each.arrived_s[name], 0, prefix))
                request.prompt_tokens += rows
        if each.ends_prompt:
            for name in each.prompt.keys() & found.keys():
                found[name].tokens_s = [each.time_s]  # of its last chunk in the end
        for name in each.decode.keys() & found.keys():
            found[name].tokens_s.append(each.time_s)
            found[name].output_tokens = max(found[name].output_tokens, each.decode[name])
    if not found:
        raise BenchError("the trace has no prompts")
    return sorted(found.values(), key=lambda request: request.arrived_s)


def served_of(steps: Sequence[TracedStep]) -> dict[str, Request]:
    """The requests of a trace that got a token in it, by name."""
    return {each.request_id: each for each in requests_of(steps) if each.tokens_s}


@dataclass(slots=True)
class Running:
    """A request whose prompt is done: tokens still to compute, and tokens that its row sees."""

    request: Request
    left: float
    context: int


@dataclass(slots=True)
class Replay:
    """One simulated run, by a group policy or a step policy; `cohort_tokens` as the server's flag.

    A step takes what the model says times the next of `surprises`.
    """

    model: RunModel
    policy: GroupPolicy
    cohort_tokens: int = 8192
    tbt_limit_s: float | None = None
    surprises: Callable[[], float] = lambda: 1.0
    ttft_limit_s: float | None = None
    now_s: float = 0.0
    waiting: deque[tuple[Request, int]] = field(default_factory=deque)  # with tokens done
    running: list[Running] = field(default_factory=list)
    _mute: deque[list[Running]] = field(default_factory=deque)  # tokens computed and not yet out
    _asked: Asked = field(init=False)

    def __post_init__(self) -> None:
        limits_s = (self.ttft_limit_s, self.tbt_limit_s)
        limits = SloClass(*(inf if limit_s is None else limit_s for limit_s in limits_s))
        self._asked = Asked(self.policy, limits, self.cohort_tokens)

    def run(self, requests: Sequence[Request]) -> dict[str, Request]:
        """Serve all requests, copies of which get the tokens' times."""
        served = [replace(each, tokens_s=[]) for each in requests]
        coming = deque(served)
        self.now_s = coming[0].arrived_s
        while coming or self.waiting or self.running:
            while coming and coming[0].arrived_s <= self.now_s:
                self.waiting.append((coming.popleft(), 0))
            if self.waiting or self.running:
                self.serve()
            else:
                self.speak_all()
                self.now_s = coming[0].arrived_s
        self.speak_all()
        return {each.request_id: each for each in served}

    def serve(self) -> None:
        """One step without prompts, or all steps of one cohort."""
        admissible = len(self.waiting)
        if self.waiting and self._asked.is_on:
            admissible = self._reorder()
        if not admissible:
            if self.running:
                self._asked.all_decoded()
                self._step(self._load(self.running), [], self.running)
            return
        pieces = self._admit(admissible)
        lens = tuple(rows for _, _, rows in pieces)
        prefixes = tuple(request.prefix_tokens + done for request, done, _ in pieces)
        ended = [request for request, done, rows in pieces if done + rows == request.prompt_tokens]
        for start, end in self._groups(lens, prefixes):
            decoding = self._asked.decoding(self.running, self.now_s, len(self.waiting))
            load = self._load(decoding, lens, prefixes, self.model.sizes.weight(start, end))
            self._step(load, ended if end == self._num_layers else [], decoding)
        self.waiting.extendleft(
            (request, done + rows)
            for request, done, rows in reversed(pieces)
            if done + rows < request.prompt_tokens
        )

    def speak_all(self) -> None:
        """Hand out the tokens that wait for a later step."""
        while self._mute:
            self._speak(self._mute.popleft())

    def _reorder(self) -> int:
        """Put the prompts that may be admitted first; gives how many. With nothing to run, time passes."""
        shown = self._asked.admissible(self.waiting, self.running, self.now_s)
        names = {request.request_id for request, _ in shown}
        others = [each for each in self.waiting if each[0].request_id not in names]
        self.waiting = deque([*shown, *others])
        if not shown and not self.running:
            self.now_s += NAP_S
        return len(shown)

    def _groups(self, lens: tuple[int, ...], prefixes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Layer ranges of a cohort; with none left to decode the rest is one."""
        policy, start = self._able(Capability.PACES_STEPS), 0
        ends: list[int] = []
        if policy is None and self.running:
            context = sum(each.context for each in self.running)
            loads = (self._num_layers, lens, prefixes, len(self.running), context, len(self.waiting))
            ends = [group.end for group in self.policy.plan(SchedulerView(*loads)).groups]
        while start < self._num_layers:
            end = self._num_layers
            if self.running and policy is not None:
                view = PaceView(self._load(self.running, lens, prefixes), start, self._due_s())
                end = min(start + policy.next_layers(view).layers, end)
            elif self.running:
                end = next(each for each in ends if each > start)
            yield start, end
            start = end

    def _admit(self, admissible: int) -> list[tuple[Request, int, int]]:
        """Prompts of the next cohort, of the first so many that wait: request, tokens done, rows now."""
        most, waiting = self.cohort_tokens, list(self.waiting)[:admissible]
        policy = self._able(Capability.PACES_STEPS)
        if policy is not None:
            lens = tuple(request.prompt_tokens - done for request, done in waiting)
            prefixes = tuple(request.prefix_tokens + done for request, done in waiting)
            context = sum(each.context for each in self.running)
            is_apart = self.model.is_apart
            view = QueueView(lens, prefixes, len(self.running), context, self._due_s(), most, is_apart)
            most = min(policy.cohort_tokens(view), most)
        pieces: list[tuple[Request, int, int]] = []
        while len(pieces) < admissible and most > 0:
            request, done = self.waiting.popleft()
            rows = min(request.prompt_tokens - done, most)
            pieces.append((request, done, rows))
            most -= rows
        self._asked.admitted(self.waiting)
        return pieces

    def _step(self, load: StepLoad, ended: Sequence[Request], decoding: Sequence[Running]) -> None:
        """Run one step: those that decode get a token, and prompts that end get their first."""
        took_s = self.model.step_s(load) * self.surprises()
        self.now_s += took_s + self.model.between_s
        policy = self._able(Capability.LEARNS)
        if policy is not None:
            policy.observe(load, took_s)
        for each in decoding:
            each.left -= 1
            each.context += 1
        new = [
            Running(each, each.output_tokens - 1, each.prompt_tokens + each.prefix_tokens) for each in ended
        ]
        self._mute.append([*decoding, *new])
        while len(self._mute) > self.model.delay_steps:
            self._speak(self._mute.popleft(), was_planned=bool(load.prompt_rows and load.decode_rows))
        self.running = [each for each in (*self.running, *new) if each.left > 0]

    def _speak(self, spoken: Sequence[Running], was_planned: bool = False) -> None:
        gaps = [self.now_s - each.request.tokens_s[-1] for each in spoken if each.request.tokens_s]
        for each in spoken:
            each.request.tokens_s.append(self.now_s)
        policy = self._able(Capability.KEEPS_TBT_LIMIT)
        if gaps and policy is not None:
            policy.observe_gap(max(gaps), was_planned)

    def _due_s(self) -> float | None:
        if self.tbt_limit_s is None or self._able(Capability.KEEPS_TBT_LIMIT) is None:
            return None
        heard = [each.request.tokens_s[-1] for each in self.running if each.request.tokens_s]
        dues = [time_s + self.tbt_limit_s - self.now_s for time_s in heard]
        return min((due for due in dues if due > 0), default=self.tbt_limit_s)

    def _load(
        self,
        decoding: Sequence[Running],
        lens: tuple[int, ...] = (),
        prefixes: tuple[int, ...] = (),
        layers: float = 0.0,
    ) -> StepLoad:
        context = sum(each.context for each in decoding)
        is_apart = bool(lens and decoding) and self.model.is_apart
        return StepLoad(len(decoding), context, lens, prefixes, layers, is_apart)

    def _able(self, capability: Capability) -> StepPolicy | None:
        """The policy, if it can that."""
        return cast("StepPolicy", self.policy) if capability in capabilities_of(self.policy) else None

    @property
    def _num_layers(self) -> int:
        return self.model.sizes.num_layers
