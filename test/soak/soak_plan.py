"""What a soak sends and does to a server: drawn from one seed before it starts; knows no server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

VOCAB = 1000
LONG_SOAK_REQUESTS = 5000
AbortKind = Literal["hang up", "abort request"]
DisturbanceKind = Literal[
    "retract",
    "in place",
    "flush",
    "group tokens",
    "chunked",
    "lull",
    "abort all",
    "abort half",
    "client dies",
]
WEIGHTS: dict[DisturbanceKind, int] = {
    "abort all": 4,
    "retract": 4,
    "client dies": 2,
    "in place": 3,
    "abort half": 4,
    "flush": 3,
    "group tokens": 2,
    "chunked": 2,
    "lull": 2,
}
FIRST_TURN_TOKENS, LATER_TURN_TOKENS = 30, 90
TURN_OUTPUTS = 8


@dataclass(frozen=True, slots=True)
class SoakSpec:
    """Sizes of a soak.

    `pool_tokens` is so small that running requests are retracted, and `max_running_requests` so small that
    most streams wait. The pool must hold the longest prompt beside the longest conversation of each talker:
    a streaming session keeps its KV between turns, and SGLang takes it from none.
    """

    num_requests: int = 10_000
    seed: int = 1
    num_prompts: int = 150
    num_streams: int = 24
    max_prompt_tokens: int = 1500
    max_output_tokens: int = 48
    abort_share: float = 0.2
    requests_per_disturbance: int = 20
    pool_tokens: int = 2000
    max_running_requests: int = 8
    num_talkers: int = 2  # clients with conversations of several turns; 0 starts without streaming sessions
    max_turns: int = 3

    @classmethod
    def of(cls, num_requests: int, seed: int = 1) -> SoakSpec:
        """A short soak has fewer prompts, so that their replay is short, and an operator without rest."""
        return cls(
            num_requests=num_requests,
            seed=seed,
            num_prompts=min(150, 20 + num_requests // 20),
            requests_per_disturbance=20 if num_requests >= LONG_SOAK_REQUESTS else 4,
        )


@dataclass(frozen=True, slots=True)
class Abort:
    """How a client gives up: so many seconds after it asked, or after so many tokens."""

    kind: AbortKind
    after_s: float | None = None
    after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One request; `prompt` is an index into the plan's prompts."""

    index: int
    prompt: int
    num_outputs: int
    pause_s: float  # how long the client waits before it asks
    abort: Abort | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of a conversation, in tokens that follow all earlier questions and answers."""

    tokens: tuple[int, ...]
    num_outputs: int
    pause_s: float
    abort: Abort | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of one streaming session."""

    index: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What an operator does once `at_request` requests were sent; most end again after `duration_s`."""

    at_request: int
    kind: DisturbanceKind
    duration_s: float
    flushes: bool  # a flush while paused
    group_tokens: int  # the other size, for "group tokens"
    seed: int  # of what is chosen among the requests that are open by then


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """Everything that happens in one soak."""

    spec: SoakSpec
    prompts: tuple[tuple[int, ...], ...]
    jobs: tuple[Job, ...]
    disturbances: tuple[Disturbance, ...]
    conversations: tuple[Conversation, ...] = ()


def make_plan(spec: SoakSpec) -> SoakPlan:
    """Draw the whole soak from `spec.seed`."""
    rng = random.Random(spec.seed)
    prompts = tuple(_prompts(spec, rng))
    jobs = tuple(_job(spec, index, rng) for index in range(spec.num_requests))
    disturbances = tuple(_disturbances(spec, rng))
    num_conversations = spec.num_requests // 10 if spec.num_talkers else 0
    conversations = tuple(_conversation(spec, index, rng) for index in range(num_conversations))
    return SoakPlan(spec, prompts, jobs, disturbances, conversations)


def _prompts(spec: SoakSpec, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Every eighth prompt is long and most are short; every third starts as an earlier one does."""
    made: list[tuple[int, ...]] = []
    for index in range(spec.num_prompts):
        length = _length(spec, index, rng)
        prefix: tuple[int, ...] = ()
        if index % 3 == 2:
            earlier = rng.choice(made)
            prefix = earlier[: rng.randint(0, min(len(earlier), length - 1))]
        made.append(prefix + tuple(rng.choices(range(3, VOCAB), k=length - len(prefix))))
        yield made[-1]


def _length(spec: SoakSpec, index: int, rng: random.Random) -> int:
    """Beside one of the longest the pool has room for short ones only: then there is no slot to decode."""
    if index < 2:
        return (1, spec.max_prompt_tokens)[index]
    if index % 8 == 0:
        return round(spec.max_prompt_tokens * rng.uniform(0.7, 1.0))
    if index % 8 == 4:
        return round(spec.max_prompt_tokens * rng.uniform(0.2, 0.7))
    return round((0.2 * spec.max_prompt_tokens) ** rng.random())


def _job(spec: SoakSpec, index: int, rng: random.Random) -> Job:
    """Clients of long prompts, one in eight, lose patience four times as often as the others."""
    prompt, num_outputs = rng.randrange(spec.num_prompts), rng.randint(1, spec.max_output_tokens)
    share = spec.abort_share * (3.0 if prompt % 8 == 0 else 0.7)
    abort = _abort(num_outputs, rng) if rng.random() < share else None
    return Job(index, prompt, num_outputs, rng.uniform(0, 0.05), abort)


def _abort(num_outputs: int, rng: random.Random) -> Abort:
    kind: AbortKind = rng.choice(("hang up", "abort request"))
    if rng.random() < 0.3:
        return Abort(kind, after_tokens=rng.randint(1, num_outputs))
    return Abort(kind, after_s=rng.choice((0.1, 1.0, 3.0)) * rng.random())


def _disturbances(spec: SoakSpec, rng: random.Random) -> Iterator[Disturbance]:
    """One in every window of `requests_per_disturbance`, each kind at least once when there are enough."""
    kinds = list(WEIGHTS)
    for number in range(1, spec.num_requests // spec.requests_per_disturbance):
        at_request = number * spec.requests_per_disturbance + rng.randrange(spec.requests_per_disturbance)
        drawn = rng.choices(kinds, list(WEIGHTS.values()))[0]
        kind = kinds[number - 1] if number <= len(kinds) else drawn
        flushes, group_tokens = rng.random() < 0.5, rng.choice((8, 128))
        duration_s, seed = rng.uniform(0.05, 0.6), rng.randrange(2**32)
        yield Disturbance(at_request, kind, duration_s, flushes, group_tokens, seed)


def _conversation(spec: SoakSpec, index: int, rng: random.Random) -> Conversation:
    """A short first turn and longer ones after it: those pass through several groups on top of kept KV."""
    turns = []
    for number in range(rng.randint(2, spec.max_turns)):
        most = LATER_TURN_TOKENS if number else FIRST_TURN_TOKENS
        tokens = tuple(rng.choices(range(3, VOCAB), k=rng.randint(most // 4, most)))
        num_outputs = rng.randint(1, TURN_OUTPUTS)
        abort = Abort("abort request", after_s=rng.random()) if rng.random() < spec.abort_share / 2 else None
        turns.append(Turn(tokens, num_outputs, rng.uniform(0, 0.1), abort))
    return Conversation(index, tuple(turns))
