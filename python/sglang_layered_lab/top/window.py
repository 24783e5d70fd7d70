"""The samples of the last seconds, so that quantiles have something to stand on. It knows no clock."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered_lab.top.increase import fell
from sglang_layered_lab.top.sample import Sample

LENGTH_S = 10.0


@dataclass(frozen=True, slots=True)
class Window:
    """Samples in order of time, over at most `length_s` or one pair.

    After a restart (`restarted`) the window is the pair around it, then starts again with the newer one.
    """

    samples: tuple[Sample, ...] = ()
    length_s: float = LENGTH_S
    restarted: bool = False

    def add(self, sample: Sample) -> Window:
        """The window that ends with `sample`."""
        if not self.samples:
            return Window((sample,), self.length_s)
        last = self.samples[-1]
        if fell(last, sample):
            return Window((last, sample), self.length_s, restarted=True)
        earlier = self.samples[1:] if self.restarted else self.samples
        kept = [each for each in earlier if each.time_s >= sample.time_s - self.length_s] or [last]
        return Window((*kept, sample), self.length_s)

    @property
    def pair(self) -> tuple[Sample, Sample] | None:
        """The ends of the window, None before the second sample."""
        return (self.samples[0], self.samples[-1]) if len(self.samples) > 1 else None
