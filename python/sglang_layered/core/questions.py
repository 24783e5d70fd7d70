"""Four questions that a policy may answer: who is admitted, when, before whom, and who decodes.

Values only, and no clock: ages are those that tensor rank 0 read and every rank was told. A policy is asked
only what its `can` names. Its answer is a wish: `core/bounds.py` sees to it that nobody waits for ever.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from sglang_layered.errors import ConfigError

Numbers = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

REQUEST_LIMITS = {"slo_ttft_ms": "ttft_s", "slo_tbt_ms": "tbt_s"}


class SloClass(NamedTuple):
    """The limits of a request, in seconds: until its first token, between two tokens. `inf` is no limit."""

    ttft_s: float = inf
    tbt_s: float = inf

    def of(self, custom_params: Mapping[str, Any] | None) -> "SloClass":
        """The limits of a request on a server with these: its own where it names some.

        Args:
            custom_params: SGLang's, of its sampling parameters, as `{"slo_ttft_ms": 500}`; null is no limit.

        Raises:
            ConfigError: a limit is no number above 0.
        """
        limits = self
        for name, field in REQUEST_LIMITS.items():
            if custom_params is None or name not in custom_params:
                continue
            limit_ms = custom_params[name]
            is_number = isinstance(limit_ms, int | float) and not isinstance(limit_ms, bool)
            if limit_ms is not None and not (is_number and isfinite(limit_ms) and limit_ms > 0):
                raise ConfigError(
                    f"custom_params {name} {limit_ms!r}: give a number of milliseconds above 0, or null for"
                    " no limit"
                )
            limits = limits._replace(**{field: inf if limit_ms is None else limit_ms / 1e3})
        return limits


class Waiting(NamedTuple):
    """A prompt that waits.

    `tokens` are to compute, after `prefix_tokens` that were in the prefix cache when it was last looked at.
    `priority` is SGLang's field, the higher the more urgent, 0 where a request gives none. `passed` says how
    often it was left out, or others were admitted before it.
    """

    tokens: int
    prefix_tokens: int = 0
    waited_s: float = 0.0  # since it came
    slo: SloClass = SloClass()
    priority: int = 0
    passed: int = 0


class Flying(NamedTuple):
    """A cohort in flight, between two of its layer groups; of its requests the most urgent values."""

    tokens: int  # rows of all its prompts
    done_layers: int
    num_layers: int
    waited_s: float = 0.0  # since the first of its requests came
    slo: SloClass = SloClass()
    priority: int = 0
    times_overtaken: int = 0


class Decode(NamedTuple):
    """A request that decodes.

    A token that was computed and is not out yet counts in `context_tokens` and `output_tokens`, and not in
    `since_token_s`.
    """

    context_tokens: int
    output_tokens: int = 1
    age_s: float = 0.0  # since it came
    since_token_s: float = 0.0  # since its last token
    slo: SloClass = SloClass()
    priority: int = 0
    sat_out: int = 0  # steps in a row


@dataclass(frozen=True, slots=True, eq=False)
class Queue(Sequence[Waiting]):
    """The prompts that wait, a column a value of `Waiting`: a prompt has the same index in all. Read-only.

    Who reads it as a sequence gets a row, made then: to make all of them costs more than a step may spend on
    deciding.
    """

    tokens: Numbers
    prefix_tokens: Numbers
    waited_s: Seconds
    ttft_s: Seconds
    tbt_s: Seconds
    priority: Numbers
    passed: Numbers

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> Waiting: ...

    @overload
    def __getitem__(self, index: slice) -> list[Waiting]: ...

    def __getitem__(self, index: int | slice) -> Waiting | list[Waiting]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return Waiting(
            int(self.tokens[index]),
            int(self.prefix_tokens[index]),
            float(self.waited_s[index]),
            SloClass(float(self.ttft_s[index]), float(self.tbt_s[index])),
            int(self.priority[index]),
            int(self.passed[index]),
        )

    @classmethod
    def of(cls, rows: Sequence[Waiting] = ()) -> "Queue":
        """The columns of these rows; where they are a `Queue`, itself."""
        if isinstance(rows, Queue):
            return rows
        names = ("tokens", "prefix_tokens", "waited_s", "slo.ttft_s", "slo.tbt_s", "priority", "passed")
        return cls(*_columns(rows, *names))


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """The requests that decode, a column a value of `Decode`: a request has the same index in all. Read-only.

    To make a row for each would cost more than a step may spend on deciding; a server makes even a
    column only when it is read.
    """

    context_tokens: Numbers
    output_tokens: Numbers
    age_s: Seconds
    since_token_s: Seconds
    ttft_s: Seconds
    tbt_s: Seconds
    priority: Numbers
    sat_out: Numbers

    def __len__(self) -> int:
        return len(self.priority)

    @classmethod
    def of(cls, rows: Sequence[Decode] = ()) -> "Running":
        """From rows, for tests and simulations."""
        names = ("context_tokens", "output_tokens", "age_s", "since_token_s", "slo.ttft_s", "slo.tbt_s")
        return cls(*_columns(rows, *names, "priority", "sat_out"))


def _columns(rows: Sequence[Waiting] | Sequence[Decode], *names: str) -> Iterator[Any]:
    """An array a name: seconds, which end in `_s`, or whole numbers."""
    for name in names:
        dtype = np.float64 if name.endswith("_s") else np.int64
        yield np.fromiter(map(attrgetter(name), rows), dtype, len(rows))


NOBODY = Running.of()


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The scheduler when it asks.

    `waiting` is the queue in its order, the first `MOST_LOOKED_AT` of it, and empty for `decode_rows`;
    `Queue.of(waiting)` has its columns, on a server at no cost. `num_waiting` counts all. `flying` are the
    cohorts in flight, the one that runs last; those before it are parked. A prompt between two chunks is in
    none of them.
    """

    waiting: Sequence[Waiting] = ()
    running: Running = NOBODY
    flying: Sequence[Flying] = ()
    num_waiting: int = 0
    max_tokens: int = 0  # that a cohort may have


class Questions(Protocol):
    """What a policy may be asked. Pure: the same view gives the same answer on every rank."""

    def order(self, view: Snapshot) -> Sequence[int] | Numbers:
        """Indices of the waiting prompts that may be admitted now, in this order; the others wait.

        Asked with prompts that wait, no cohort in flight, and fewer requests running than may run. A prompt
        between two chunks goes on whatever the answer is. Bounds: who was passed `MOST_PASSED` times comes
        first, the oldest first.
        """

    def hold(self, view: Snapshot) -> float:
        """Seconds to wait for a fuller cohort; 0 to admit now.

        Asked where `order` is, with the same view, before each step anew: who decodes goes on meanwhile. Not
        asked for a prompt between two chunks. Bounds: `MOST_HELD_S` between two admissions.
        """

    def preempt(self, view: Snapshot) -> Sequence[int] | Numbers | None:
        """Indices of the waiting prompts that go before `view.flying[-1]`, together; None: it goes on.

        Asked at a group's edge, with prompts that wait and fewer parked than `--layered-max-parked`. Bounds:
        a cohort that was overtaken runs a group before it is asked about again; of the answer come as many
        as a cohort may have tokens, uncut.
        """

    def decode_rows(self, view: Snapshot) -> Sequence[int] | Numbers | None:
        """Indices of the running requests that decode in the next step; None or an empty answer: all.

        Asked before a step that computes prompts; without prompts all decode. Bounds: who has sat out
        `MOST_SAT_OUT` steps in a row decodes.
        """
