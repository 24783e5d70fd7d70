"""What a step runs, in the terms of the step-time model."""

from __future__ import annotations

from dataclasses import replace

from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.core.choice import APART
from sglang_layered.core.pacing import ModelSizes, StepLoad
from sglang_layered.core.plan import LayerGroup

STEPS_PER_COUNT = 8


class StepLoads:
    """Counts rows and context tokens of batches. Whether a step runs its rows apart, its strategy says."""

    def __init__(self, sizes: ModelSizes) -> None:
        self._sizes = sizes
        self._context = (0, 0, 0)  # decode rows, tokens that they see, steps since these were counted
        self._latest: tuple[ScheduleBatch, ScheduleBatch, StepLoad] | None = None

    def at_rest(self, decode: ScheduleBatch, prompt: ScheduleBatch, strategy: str | None) -> StepLoad:
        """A layered step before its layers are chosen: the prompt in no layer."""
        rows, tokens = self._of_decode(decode)
        lens, prefixes = tuple(prompt.extend_lens), tuple(prompt.prefix_lens)
        load = StepLoad(rows, tokens, lens, prefixes, 0.0, strategy in APART)
        self._latest = (decode, prompt, load)
        return load

    def of_group(
        self, decode: ScheduleBatch | None, prompt: ScheduleBatch, group: LayerGroup, strategy: str | None
    ) -> StepLoad:
        """A layered step in the strategy that runs it."""
        weight = self._sizes.weight(group.start, group.end)
        latest, self._latest = self._latest, None
        if decode is None:
            return StepLoad(0, 0, tuple(prompt.extend_lens), tuple(prompt.prefix_lens), weight)
        if latest is not None and latest[0] is decode and latest[1] is prompt:
            load = latest[2]
        else:
            load = self.at_rest(decode, prompt, strategy)
        return replace(load, prompt_layers=weight, is_apart=strategy in APART)

    def of_decode(self, decode: ScheduleBatch) -> StepLoad:
        """A decode step of SGLang's."""
        return StepLoad(*self._of_decode(decode))

    def of_prompt(self, prompt: ScheduleBatch) -> StepLoad:
        """A prefill step of SGLang's: all layers."""
        weight = self._sizes.weight(0, self._sizes.num_layers)
        return StepLoad(0, 0, tuple(prompt.extend_lens), tuple(prompt.prefix_lens), weight)

    def _of_decode(self, decode: ScheduleBatch) -> tuple[int, int]:
        """Rows, and tokens that they see: a row's grow by one a step, so they are counted now and then."""
        rows = len(decode.reqs)
        known_rows, tokens, age = self._context
        if rows == known_rows and age < STEPS_PER_COUNT:
            self._context = (rows, tokens + rows, age + 1)
        else:
            self._context = (rows, _context_tokens(decode), 0)
        return rows, self._context[1]


def _context_tokens(batch: ScheduleBatch) -> int:
    lens = batch.seq_lens_cpu
    return sum(req.seqlen for req in batch.reqs) if lens is None else int(lens.sum())
