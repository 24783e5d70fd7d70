"""Which layers and batch sizes are captured. Pure: no torch, no sglang."""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

from sglang_layered.errors import PlanError

MOST_GRAPHS = 400  # a start records them one by one, two warm-up runs before each
BETWEEN_SIZES = (1.5, 2.0)  # a graph's rows are padded to at most that many times what they are
FINEST_GROUPS = (
    16  # a group of so many has no layer beside it that runs eagerly, if sizes of that spacing allow
)


@dataclass(frozen=True, slots=True)
class Cover:
    """A layer range as `head`, then `runs`, then `tail`.

    `head` and `tail` are layers that run eagerly, `runs` are ranges of base segments, a graph each; all
    half-open.
    """

    head: range
    runs: tuple[range, ...]
    tail: range


@dataclass(frozen=True, slots=True)
class LayerSegments:
    """Base segments [0, k), [k, 2k), ... of `granularity` k layers; the last may be shorter.

    There is a graph for every base segment, every aligned pair of them, every aligned four, and so on: the
    layers before or after a group need few launches, at most two for each doubling. With k > 1 the layers
    between a cut that is no multiple of k and the nearest segment run eagerly.
    """

    num_layers: int
    granularity: int

    def __post_init__(self) -> None:
        if not 1 <= self.granularity <= self.num_layers:
            raise PlanError(f"cannot cut {self.num_layers} layers into segments of {self.granularity}")

    @classmethod
    def fitting(cls, num_layers: int, num_sizes: int) -> "LayerSegments":
        """The finest ones whose graphs are at most MOST_GRAPHS at so many batch sizes."""
        every = (cls(num_layers, granularity) for granularity in range(1, num_layers + 1))
        return next(
            (one for one in every if num_sizes * one.num_graphs <= MOST_GRAPHS), cls(num_layers, num_layers)
        )

    @property
    def num_segments(self) -> int:
        """How many base segments there are."""
        return -(-self.num_layers // self.granularity)

    @property
    def runs(self) -> tuple[range, ...]:
        """The ranges of base segments that are captured; never all, for a group has a layer at least."""
        count, widths = self.num_segments, [1]
        while 2 * widths[-1] < count:
            widths.append(2 * widths[-1])
        aligned = [range(at, min(at + width, count)) for width in widths for at in range(0, count, width)]
        return tuple(dict.fromkeys(aligned))

    @property
    def num_graphs(self) -> int:
        """Graphs of one batch size: the runs, tokens to rows, and rows to logits."""
        return len(self.runs) + 2

    def cut(self, index: int) -> int:
        """First layer of segment `index`; the number of layers for `num_segments`."""
        return min(index * self.granularity, self.num_layers)

    def layers(self, run: range) -> tuple[int, int]:
        """First layer of a run, and the one after its last."""
        return self.cut(run.start), self.cut(run.stop)

    @cache  # noqa: B019 - few, small and equal ones live as long as the server; a step asks twice
    def cover(self, start: int, end: int) -> Cover:
        """Layers [start, end) by as many base segments as fit, in as few runs as there are."""
        if not 0 <= start <= end <= self.num_layers:
            raise PlanError(f"layers [{start}, {end}) are not within [0, {self.num_layers})")
        first = -(-start // self.granularity)
        last = self.num_segments if end == self.num_layers else end // self.granularity
        if first > last:
            return Cover(range(start, end), (), range(end, end))
        return Cover(range(start, self.cut(first)), self._runs(first, last), range(self.cut(last), end))

    def _runs(self, first: int, last: int) -> tuple[range, ...]:
        runs, count = [], self.num_segments
        while first < last:
            width = 1
            while 2 * width < count and first % (2 * width) == 0 and min(first + 2 * width, count) <= last:
                width *= 2
            runs.append(range(first, min(first + width, count)))
            first += width
        return tuple(runs)


@dataclass(frozen=True, slots=True)
class BatchBuckets:
    """The captured batch sizes in rows, ascending. `exact` forbids padding (--disable-cuda-graph-padding)."""

    sizes: tuple[int, ...]
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise PlanError(f"batch sizes {self.sizes} are not positive and ascending")

    def thinned(self, ratio: float) -> "BatchBuckets":
        """Fewer sizes, where rows may be padded: each at least `ratio` times the one before."""
        if self.exact:
            return self
        kept = [self.sizes[-1]]
        for size in reversed(self.sizes):
            if size * ratio <= kept[-1] or (size == self.sizes[0] and size != kept[-1]):
                kept.append(size)
        return BatchBuckets(tuple(reversed(kept)))

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


def to_capture(
    num_layers: int, granularity: int | None, stock: BatchBuckets
) -> tuple[LayerSegments, BatchBuckets]:
    """Segments and batch sizes where stock's graphs have the sizes `stock`; None: a granularity that fits.

    A device with much memory captures more sizes. They are spaced wider before segments are longer than a
    group of FINEST_GROUPS: an eager layer costs the host more than padded rows cost the device.
    """
    segments, buckets = LayerSegments(num_layers, granularity or num_layers), stock
    for ratio in BETWEEN_SIZES:
        buckets = stock.thinned(ratio)
        if granularity is not None:
            break
        segments = LayerSegments.fitting(num_layers, len(buckets.sizes))
        if segments.granularity <= -(-num_layers // FINEST_GROUPS):
            break
    return segments, buckets
