"""The ways to run a layered step: same rows, same layers, same tokens, other kernels side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from sglang_layered.config import LayeredConfig
from sglang_layered.core.choice import FixedChoice, MeasuredChoice, StepShape, StrategyChoice
from sglang_layered.core.view import StepTiming
from sglang_layered.runner.layered_runner import GroupStep, LayeredRunner, StepOutput

Strategy = Callable[[GroupStep], StepOutput]


class Beside(Protocol):
    """Runs what is launched inside `branch()` beside what was launched since `fork()`."""

    def fork(self) -> None:
        """From here on the two branches depend on nothing of each other."""

    def branch(self) -> AbstractContextManager[None]:
        """Launch on the side; when the context ends, the main branch waits for the side."""


class SideStream:
    """A second CUDA stream; with `num_sms` it may use only so many of the device's SMs (a green context)."""

    def __init__(self, num_sms: int | None) -> None:
        if num_sms is None:
            self._stream = torch.cuda.Stream()
        else:
            from torch.cuda.green_contexts import GreenContext

            self._context = GreenContext.create(num_sms, torch.cuda.current_device())
            self._stream = self._context.Stream()
        self._ready = torch.cuda.Event()

    def fork(self) -> None:
        """The side will wait for what the current stream has been given so far, and for nothing later."""
        self._ready.record()

    @contextmanager
    def branch(self) -> Iterator[None]:
        """Launch on the side stream, then let the current stream wait for it."""
        current = torch.cuda.current_stream()
        self._stream.wait_event(self._ready)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


class Execution:
    """Runs layered steps in the strategy that is chosen for each.

    fused: in the group's layers prompt and decode rows are one batch, so the group's experts are read once.
    sequential: SGLang's own decode step, with its graphs, then the group for the prompt rows alone.
    concurrent: as sequential, with the group on a second stream.
    """

    def __init__(self, runner: LayeredRunner, choice: StrategyChoice, beside: Beside | None = None) -> None:
        self.choice = choice
        self._runner = runner
        self._beside = beside
        self._strategies: dict[str, Strategy] = {
            "fused": runner.fused,
            "sequential": self._sequential,
            "concurrent": self._concurrent,
        }

    @classmethod
    def from_config(cls, runner: LayeredRunner, config: LayeredConfig, device: str) -> Execution:
        """The execution that the flags ask for; `auto` compares what the device can do."""
        wanted = config.layered_execution
        beside = None
        if device == "cuda" and wanted in ("concurrent", "auto"):
            beside = SideStream(config.layered_prompt_sms)
        names = ("fused", "sequential") if beside is None else ("fused", "sequential", "concurrent")
        choice = MeasuredChoice(names) if wanted == "auto" else FixedChoice(wanted)
        return cls(runner, choice, beside)

    def choose(self, shape: StepShape) -> str | None:
        """The strategy of a step, None for one without decode rows: there is nothing to choose."""
        if isinstance(self.choice, FixedChoice):
            return self.choice.strategy if shape.num_decode_rows else None
        return self.choice.choose(shape) if shape.num_decode_rows else None

    def expected(self, shape: StepShape) -> str | None:
        """The strategy that such a step will run in, unless another one is tried; asking changes nothing."""
        if isinstance(self.choice, FixedChoice):
            return self.choice.strategy if shape.num_decode_rows else None
        return self.choice.expected(shape) if shape.num_decode_rows else None

    def observe(self, strategy: str, timing: StepTiming) -> None:
        """A step with this strategy took so long."""
        shape = StepShape(timing.num_decode_rows, timing.num_prompt_rows, timing.num_layers)
        self.choice.observe(strategy, shape, timing.duration_s)

    def run(self, step: GroupStep, strategy: str | None) -> StepOutput:
        """Run a step; logits and activations do not depend on the strategy but for rounding."""
        return self._runner.fused(step) if strategy is None else self._strategies[strategy](step)

    def _sequential(self, step: GroupStep) -> StepOutput:
        record = self._runner.decode_alone(step.decode)
        return _together(record, self._runner.fused(replace(step, decode=None)))

    def _concurrent(self, step: GroupStep) -> StepOutput:
        if self._beside is None:
            raise AssertionError("no second stream")
        self._beside.fork()
        record = self._runner.decode_alone(step.decode)
        with self._beside.branch():
            prompt = self._runner.fused(replace(step, decode=None))
        return _together(record, prompt)


def _together(decode: Any, prompt: StepOutput) -> StepOutput:
    return replace(prompt, decode_logits=decode.logits_output, decode_record=decode)
