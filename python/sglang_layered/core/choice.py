"""Which way to run a layered step: fixed, or whatever was fastest for steps of the same size.

Pure: it sees sizes and durations that others measured, and knows no clock.
"""

import logging
import statistics
from collections import deque
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

NUM_KEPT = 5
NUM_TO_COMPARE = 3
NUM_BETWEEN_TRIALS = 64
MARGIN = 0.03
APART = frozenset({"sequential", "concurrent"})  # prompt and decode rows run in a forward each


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes of a layered step that decide how long it takes."""

    num_decode_rows: int
    num_prompt_rows: int
    num_layers: int

    @property
    def bucket(self) -> "StepShape":
        """All sizes rounded down to a power of two: steps of one bucket are compared with each other."""
        return StepShape(
            _power_of_two(self.num_decode_rows),
            _power_of_two(self.num_prompt_rows),
            _power_of_two(self.num_layers),
        )


@dataclass(slots=True)
class _Bucket:
    """What is known of the steps of one size. A strategy's first step there is not counted: it compiles."""

    durations: dict[str, deque[float]]
    best: str | None = None
    num_steps: int = 0
    warmed_up: set[str] = field(default_factory=set)

    def median(self, strategy: str) -> float:
        return statistics.median(self.durations[strategy])


class StrategyChoice:
    """The strategy with the lowest median step time in each bucket of sizes; of one only there is no choice.

    Strategies take turns until each was measured `NUM_TO_COMPARE` times. Every `NUM_BETWEEN_TRIALS` steps the
    others are tried once more, and one that is faster by more than `MARGIN` takes over.

    Attributes:
        only: The one strategy, which need not be asked for; None with several.
        learns: True with several, which are to be told what steps took.
    """

    def __init__(self, *strategies: str) -> None:
        self.strategies = strategies
        self.only = strategies[0] if len(strategies) == 1 else None
        self.learns = len(strategies) > 1
        self._buckets: dict[StepShape, _Bucket] = {}

    def choose(self, shape: StepShape) -> str:
        """An unmeasured strategy if there is one, a trial if one is due, else the best so far."""
        bucket = self._bucket(shape)
        bucket.num_steps += 1
        if bucket.best is None:
            return self.strategies[bucket.num_steps % len(self.strategies)]
        trial = bucket.num_steps % (NUM_BETWEEN_TRIALS + len(self.strategies)) - NUM_BETWEEN_TRIALS
        return bucket.best if trial < 0 else self.strategies[trial]

    def expected(self, shape: StepShape) -> str:
        """The best so far; the first one as long as none is known to be."""
        bucket = self._buckets.get(shape.bucket)
        return (bucket.best if bucket is not None else None) or self.strategies[0]

    def observe(self, strategy: str, shape: StepShape, duration_s: float) -> None:
        """Note a duration; the best of the bucket may change, which is logged with both medians."""
        bucket = self._bucket(shape)
        if strategy not in bucket.warmed_up:
            bucket.warmed_up.add(strategy)
            return
        bucket.durations[strategy].append(duration_s)
        if all(len(bucket.durations[name]) >= NUM_TO_COMPARE for name in self.strategies):
            self._compare(shape.bucket, bucket)

    def _bucket(self, shape: StepShape) -> _Bucket:
        key = shape.bucket
        if key not in self._buckets:
            self._buckets[key] = _Bucket({name: deque(maxlen=NUM_KEPT) for name in self.strategies})
        return self._buckets[key]

    def _compare(self, key: StepShape, bucket: _Bucket) -> None:
        fastest = min(self.strategies, key=bucket.median)
        if bucket.best == fastest:
            return
        if bucket.best is None or bucket.median(fastest) < bucket.median(bucket.best) * (1 - MARGIN):
            bucket.best = fastest
            medians = ", ".join(f"{name} {1e3 * bucket.median(name):.2f} ms" for name in self.strategies)
            logger.info(
                "Layered execution: %s from %d decode rows, %d prompt rows and %d layers on (%s)",
                fastest, key.num_decode_rows, key.num_prompt_rows, key.num_layers, medians,
            )  # fmt: skip


def _power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value > 0 else 0
