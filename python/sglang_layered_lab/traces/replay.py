"""What another policy would have made of a recorded run: the same requests, steps as long as predicted.

The step-time model is fitted to the trace's own steps; the scheduler is a model of `scheduler.loop`: prompts
in order, one cohort in flight, decode in every step, prompts beside nothing whole. It knows no
KV pressure and no prefix cache: what the trace found there stays found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import PaceView, QueueView, StepLoad, StepPolicy
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import BenchError
from sglang_layered_lab.traces.run_model import RunModel
from sglang_layered_lab.traces.trace import TracedStep


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request of the trace: when it came, tokens to compute, tokens before them, tokens it got."""

    request_id: str
    arrived_s: float
    prompt_tokens: int
    prefix_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """When a request came and when its tokens did, in seconds."""

    arrived_s: float
    tokens_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.tokens_s[0] - self.arrived_s

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens."""
        return [later - earlier for earlier, later in pairwise(self.tokens_s)]


def requests_of(steps: Sequence[TracedStep]) -> list[Recorded]:
    """The requests of a trace whose prompts it holds whole, oldest first."""
    rows: dict[str, int] = {}
    prefixes: dict[str, int] = {}
    arrived: dict[str, float] = {}
    outputs: dict[str, int] = {}
    for each in steps:
        if each.begins_prompt:
            for place, (name, num_rows) in enumerate(each.prompt.items()):
                rows[name] = rows.get(name, 0) + num_rows
                prefixes.setdefault(name, each.load.prefix_lens[place])
                arrived.setdefault(name, each.arrived_s[name])
        for name, count in each.decode.items():
            outputs[name] = max(count, outputs.get(name, 1))
    known = [Recorded(name, arrived[name], rows[name], prefixes[name], outputs.get(name, 1)) for name in rows]
    if not known:
        raise BenchError("the trace has no prompts")
    return sorted(known, key=lambda request: request.arrived_s)


def served_of(steps: Sequence[TracedStep]) -> dict[str, Served]:
    """When the requests of the trace got their tokens."""
    arrived: dict[str, float] = {}
    tokens: dict[str, list[float]] = {}
    for each in steps:
        for name in each.prompt:
            arrived.setdefault(name, each.arrived_s[name])
            if each.ends_prompt:
                tokens[name] = [each.time_s]  # of its last chunk in the end
        for name in each.decode:
            tokens.setdefault(name, []).append(each.time_s)
    return {name: Served(arrived[name], tuple(times)) for name, times in tokens.items() if name in arrived}


@dataclass(slots=True)
class _Running:
    request: Recorded
    left: int
    context: int
    heard_s: float = 0.0


@dataclass(slots=True)
class Replay:
    """One simulated run, by a group policy or a step policy; `cohort_tokens` as the server's flag."""

    model: RunModel
    policy: GroupPolicy
    cohort_tokens: int = 8192
    tbt_limit_s: float | None = None
    now_s: float = 0.0
    _waiting: deque[tuple[Recorded, int]] = field(default_factory=deque)  # with tokens done
    _running: list[_Running] = field(default_factory=list)
    _tokens: dict[str, list[float]] = field(default_factory=dict)
    _mute: deque[list[_Running]] = field(default_factory=deque)  # tokens computed and not yet out

    def run(self, requests: Sequence[Recorded]) -> dict[str, Served]:
        """Serve all requests."""
        coming = deque(requests)
        self.now_s = coming[0].arrived_s
        while coming or self._waiting or self._running:
            while coming and coming[0].arrived_s <= self.now_s:
                self._waiting.append((coming.popleft(), 0))
            if not self._waiting and not self._running:
                self._speak_all()
                self.now_s = coming[0].arrived_s
                continue
            self._serve(coming)
        self._speak_all()
        arrived = {request.request_id: request.arrived_s for request in requests}
        return {name: Served(arrived[name], tuple(times)) for name, times in self._tokens.items()}

    def _serve(self, coming: deque[Recorded]) -> None:
        """One step without prompts, or all steps of one cohort."""
        if not self._waiting:
            self._step(self._load(), [])
            return
        pieces = self._admit()
        lens = tuple(rows for _, _, rows in pieces)
        prefixes = tuple(request.prefix_tokens + done for request, done, _ in pieces)
        ended = [request for request, done, rows in pieces if done + rows == request.prompt_tokens]
        if not self._running:
            self._step(StepLoad(0, 0, lens, prefixes, self._num_layers), ended)
        else:
            for start, end in self._groups(lens, prefixes):
                load = self._load(lens, prefixes, self.model.sizes.weight(start, end))
                self._step(load, ended if end == self._num_layers else [])
        self._waiting.extendleft(
            (request, done + rows)
            for request, done, rows in reversed(pieces)
            if done + rows < request.prompt_tokens
        )

    def _groups(self, lens: tuple[int, ...], prefixes: tuple[int, ...]) -> Iterator[tuple[int, int]]:
        """Layer ranges of a cohort; with none left to decode the rest is one."""
        policy = self._able(Capability.PACES_STEPS)
        if policy is None:
            plan = self._plan(lens, prefixes)
            for group in plan.groups:
                if not self._running:
                    yield group.start, self._num_layers
                    return
                yield group.start, group.end
            return
        start = 0
        while start < self._num_layers:
            if not self._running:
                yield start, self._num_layers
                return
            view = PaceView(self._load(lens, prefixes, 0), start, self._due_s())
            end = min(start + policy.next_layers(view).layers, self._num_layers)
            yield start, end
            start = end

    def _plan(self, lens: tuple[int, ...], prefixes: tuple[int, ...]) -> LayerGroupPlan:
        context = sum(each.context for each in self._running)
        return self.policy.plan(
            SchedulerView(self._num_layers, lens, prefixes, len(self._running), context, len(self._waiting))
        )

    def _admit(self) -> list[tuple[Recorded, int, int]]:
        """Prompts of the next cohort: request, tokens done, rows now."""
        most = self.cohort_tokens
        policy = self._able(Capability.PACES_STEPS)
        if policy is not None:
            lens = tuple(request.prompt_tokens - done for request, done in self._waiting)
            prefixes = tuple(request.prefix_tokens + done for request, done in self._waiting)
            context = sum(each.context for each in self._running)
            is_apart = self.model.is_apart
            view = QueueView(lens, prefixes, len(self._running), context, self._due_s(), most, is_apart)
            most = min(policy.cohort_tokens(view), most)
        pieces: list[tuple[Recorded, int, int]] = []
        while self._waiting and most > 0:
            request, done = self._waiting.popleft()
            rows = min(request.prompt_tokens - done, most)
            pieces.append((request, done, rows))
            most -= rows
        return pieces

    def _step(self, load: StepLoad, ended: Sequence[Recorded]) -> None:
        """Run one step: running requests get a token, and prompts that end get their first."""
        start_s, took_s = self.now_s, self.model.step_s(load)
        self.now_s += took_s + self.model.between_s
        policy = self._able(Capability.LEARNS)
        if policy is not None:
            policy.observe(load, took_s)
        spoke = self._running if load.decode_rows else []
        for each in spoke:
            each.left -= 1
            each.context += 1
        new = [
            _Running(each, each.output_tokens - 1, each.prompt_tokens + each.prefix_tokens) for each in ended
        ]
        self._mute.append([*spoke, *new])
        while len(self._mute) > self.model.delay_steps:
            self._speak(self._mute.popleft(), self.now_s - start_s)
        self._running = [each for each in (*self._running, *new) if each.left > 0]

    def _speak(self, spoken: Sequence[_Running], step_s: float) -> None:
        gaps = [self.now_s - each.heard_s for each in spoken if each.heard_s]
        for each in spoken:
            self._tokens.setdefault(each.request.request_id, []).append(self.now_s)
            each.heard_s = self.now_s
        policy = self._able(Capability.KEEPS_TBT_LIMIT)
        if gaps and policy is not None:
            policy.observe_gap(max(gaps), was_planned=False)

    def _speak_all(self) -> None:
        while self._mute:
            self._speak(self._mute.popleft(), 0.0)

    def _due_s(self) -> float | None:
        if self.tbt_limit_s is None or self._able(Capability.KEEPS_TBT_LIMIT) is None:
            return None
        dues = [each.heard_s + self.tbt_limit_s - self.now_s for each in self._running]
        return min((due for due in dues if due > 0), default=self.tbt_limit_s)

    def _load(
        self, lens: tuple[int, ...] = (), prefixes: tuple[int, ...] = (), layers: float = 0.0
    ) -> StepLoad:
        context = sum(each.context for each in self._running)
        is_apart = bool(lens and self._running) and self.model.is_apart
        return StepLoad(len(self._running), context, lens, prefixes, layers, is_apart)

    def _able(self, capability: Capability) -> StepPolicy | None:
        """The policy, if it can that."""
        return cast("StepPolicy", self.policy) if capability in capabilities_of(self.policy) else None

    @property
    def _num_layers(self) -> int:
        return self.model.sizes.num_layers
