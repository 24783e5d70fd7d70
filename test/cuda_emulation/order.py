"""Which of two accesses comes first, told from recorded stream and event calls alone. Knows no torch.

Every stream, and the host, has a vector clock: how much of every other one's work has surely ended before its
own next action. Two accesses of a buffer of which one writes must be ordered by these clocks; that they came
one after the other in this process says nothing, since a GPU would have run them side by side.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

HOST = "host"
Clock = dict[str, int]


@dataclass(frozen=True, slots=True)
class Access:
    """One read or write: the `count`-th action of a stream; `where` is the code that launched it."""

    stream: str
    count: int
    is_write: bool
    where: str

    def __str__(self) -> str:
        return f"{'write' if self.is_write else 'read'} on {self.stream} at {self.where}"


@dataclass(slots=True)
class Order:
    """The recorded order, and each pair of accesses that nothing orders, in words, once."""

    violations: list[str] = field(default_factory=list)
    num_accesses: int = 0
    _clocks: dict[str, Clock] = field(default_factory=dict)
    _written: dict[str, Access] = field(default_factory=dict)
    _read: dict[str, dict[str, Access]] = field(default_factory=dict)

    def launch(self, stream: str) -> Clock:
        """The host gives a stream work: it comes after all that the host has seen end."""
        clock = self._clocks.setdefault(stream, {})
        _join(clock, self._clocks.setdefault(HOST, {}))
        clock[stream] = clock.get(stream, 0) + 1
        return clock

    def record(self, stream: str) -> Clock:
        """What an event recorded now on a stream stands for."""
        return dict(self.launch(stream))

    def wait(self, stream: str, recorded: Clock) -> None:
        """Later work of a stream comes after what was recorded."""
        _join(self.launch(stream), recorded)

    def synchronize(self, recorded: Clock) -> None:
        """The host has waited for what was recorded."""
        _join(self._clocks.setdefault(HOST, {}), recorded)

    def synchronize_all(self) -> None:
        """The host has waited for the device."""
        for clock in list(self._clocks.values()):
            self.synchronize(clock)

    def access(self, buffer: str, stream: str, is_write: bool, where: str) -> None:
        """A kernel launched on a stream reads or writes a buffer."""
        clock = self.launch(stream)
        now = Access(stream, clock[stream], is_write, where)
        self.num_accesses += 1
        before = [self._written[buffer]] if buffer in self._written else []
        if is_write:
            before += self._read.pop(buffer, {}).values()
            self._written[buffer] = now
        else:
            self._read.setdefault(buffer, {})[stream] = now
        for other in before:
            if not _has_ended(other, clock):
                self._note(f"{buffer}: {now} is not ordered after {other}")

    def free(self, buffer: str, home: str, kept_for: Collection[str] = ()) -> None:
        """A buffer's memory goes back to `home`, the stream that it was allocated on, for its next user.

        Work on other streams must have ended by then, or the tensor must have been recorded on them.
        """
        clock = self.record(home)
        last = [*self._read.pop(buffer, {}).values()]
        last += [self._written.pop(buffer)] if buffer in self._written else []
        for access in last:
            if access.stream not in kept_for and not _has_ended(access, clock):
                self._note(f"{buffer}: its memory returns to {home} before the end of {access}")

    def _note(self, violation: str) -> None:
        if violation not in self.violations:
            self.violations.append(violation)


def _has_ended(access: Access, clock: Clock) -> bool:
    return clock.get(access.stream, 0) >= access.count


def _join(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)
