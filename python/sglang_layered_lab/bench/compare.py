"""The best of many arms in the plane of TTFT and TBT. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class HasTtft(Protocol):
    """Anything with a time to first token."""

    @property
    def ttft_s(self) -> float:
        """Seconds."""
        ...


Timed = TypeVar("Timed", bound=HasTtft)


@dataclass(frozen=True, slots=True)
class Point:
    """An arm's place in the plane of TTFT and TBT; less is better in both."""

    arm: str
    ttft_s: float
    tbt_s: float


def pareto_set(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats: as good in both and better in one. Lowest TTFT first; equals all stay."""
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.ttft_s, each.tbt_s)):
        same = bool(found) and (found[-1].ttft_s, found[-1].tbt_s) == (point.ttft_s, point.tbt_s)
        if not found or same or point.tbt_s < found[-1].tbt_s:
            found.append(point)
    return found


def soonest(arms: Iterable[Timed], keeps: Callable[[Timed], bool]) -> Timed | None:
    """The lowest TTFT among those that keep a limit on TBT, the first of equals; None when none keeps it."""
    return min(filter(keeps, arms), key=lambda each: each.ttft_s, default=None)


def best_ttft(points: Iterable[Point], tbt_limit_s: float) -> Point | None:
    """The soonest of the points with at most this TBT (lower TBT on a tie); None when there is none."""
    by_tbt = sorted(points, key=lambda each: each.tbt_s)
    return soonest(by_tbt, lambda each: each.tbt_s <= tbt_limit_s)
