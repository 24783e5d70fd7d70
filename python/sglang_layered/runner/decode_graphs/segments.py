"""Which layers and batch sizes are captured. Pure: no torch, no sglang."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from sglang_layered.errors import PlanError


@dataclass(frozen=True, slots=True)
class Cover:
    """A layer range as `head`, then `segments`, then `tail`.

    `head` and `tail` are layers that run eagerly, `segments` are indices of base segments; all half-open.
    """

    head: range
    segments: range
    tail: range


@dataclass(frozen=True, slots=True)
class LayerSegments:
    """Base segments [0, k), [k, 2k), ... of `granularity` k layers; the last may be shorter.

    With k = 1 every range is segments alone. With k > 1 the layers between a cut that is no multiple of k
    and the nearest segment run eagerly.
    """

    num_layers: int
    granularity: int

    def __post_init__(self) -> None:
        if not 1 <= self.granularity <= self.num_layers:
            raise PlanError(f"cannot cut {self.num_layers} layers into segments of {self.granularity}")

    @property
    def num_segments(self) -> int:
        """How many base segments there are."""
        return -(-self.num_layers // self.granularity)

    def cut(self, index: int) -> int:
        """First layer of segment `index`; the number of layers for `num_segments`."""
        return min(index * self.granularity, self.num_layers)

    def cover(self, start: int, end: int) -> Cover:
        """Layers [start, end) by as many base segments as fit."""
        if not 0 <= start <= end <= self.num_layers:
            raise PlanError(f"layers [{start}, {end}) are not within [0, {self.num_layers})")
        first = -(-start // self.granularity)
        last = self.num_segments if end == self.num_layers else end // self.granularity
        if first > last:
            return Cover(range(start, end), range(first, first), range(end, end))
        return Cover(range(start, self.cut(first)), range(first, last), range(self.cut(last), end))


@dataclass(frozen=True, slots=True)
class BatchBuckets:
    """The captured batch sizes in rows, ascending. `exact` forbids padding (--disable-cuda-graph-padding)."""

    sizes: tuple[int, ...]
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise PlanError(f"batch sizes {self.sizes} are not positive and ascending")

    @property
    def max_rows(self) -> int:
        """Rows of the largest bucket."""
        return self.sizes[-1]

    def bucket_for(self, num_rows: int) -> int | None:
        """The smallest bucket that holds these rows, or None."""
        index = bisect_left(self.sizes, num_rows)
        if num_rows < 1 or index == len(self.sizes):
            return None
        bucket = self.sizes[index]
        return None if self.exact and bucket != num_rows else bucket
