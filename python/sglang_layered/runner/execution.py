"""The ways to run a layered step: same rows, same layers, same tokens, other kernels side by side."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from sglang_layered.config import LayeredConfig
from sglang_layered.core.choice import StepShape, StrategyChoice
from sglang_layered.core.view import StepTiming
from sglang_layered.errors import UnsupportedError
from sglang_layered.runner.layered_runner import GroupStep, LayeredRunner, StepOutput

logger = logging.getLogger(__name__)

WRITTEN_TWICE = "%s, which prompt and decode rows would write at the same time"
Strategy = Callable[[GroupStep], StepOutput]
FUSED = "fused"
ENCODER = "encoder"  # no way to run a group, and never chosen: a step before the first one


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

    def __init__(
        self, runner: LayeredRunner, choice: StrategyChoice, beside: SideStream | None = None
    ) -> None:
        self.choice = choice
        self._runner = runner
        self._beside = beside
        self._strategies: dict[str, Strategy] = {
            FUSED: runner.fused,
            "sequential": self._sequential,
            "concurrent": self._concurrent,
            ENCODER: self._encoder,
        }

    @classmethod
    def from_config(
        cls, runner: LayeredRunner, config: LayeredConfig, device: str, verifies: bool = False
    ) -> "Execution":
        """The execution that the flags ask for; `auto` compares what the device can do.

        With `verifies` decode rows are drafts and run in SGLang's own steps, where the group is to join them.

        Raises:
            UnsupportedError: prompt and decode rows cannot run at the same time.
        """
        if verifies and (runner.verifies_apart or runner.keeps_embeds):
            logger.info(
                "Speculative decoding: layered steps run as --layered-execution sequential, in which drafts"
                " are verified by SGLang's own steps; prompts beside them in one forward run only where no"
                " CUDA graph verifies (on a CPU, or with --disable-cuda-graph), and not behind an indexer or"
                " where drafts are told of images"
            )
            return cls(runner, StrategyChoice("sequential"))
        wanted = config.layered_execution
        beside = None
        if device == "cuda" and wanted in ("concurrent", "auto"):
            reason = runner.not_concurrent
            if reason is None:
                beside = SideStream(config.layered_prompt_sms)
            elif wanted == "concurrent":
                why = WRITTEN_TWICE % reason
                raise UnsupportedError(f"--layered-execution concurrent: {why}; use fused or auto")
            else:
                why = WRITTEN_TWICE % reason
                logger.warning("--layered-execution auto compares fused and sequential only: %s", why)
        names = (FUSED, "sequential") if beside is None else (FUSED, "sequential", "concurrent")
        return cls(runner, StrategyChoice(*(names if wanted == "auto" else (wanted,))), beside)

    def choose(self, shape: StepShape) -> str | None:
        """The strategy of a step, None for one without decode rows: there is nothing to choose."""
        if not shape.num_decode_rows:
            return None
        return self.choice.only or self.choice.choose(shape)

    def expected(self, shape: StepShape) -> str | None:
        """The strategy that such a step will run in, unless another one is tried; asking changes nothing."""
        if not shape.num_decode_rows:
            return None
        return self.choice.only or self.choice.expected(shape)

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

    def _encoder(self, step: GroupStep) -> StepOutput:
        if step.decode is None:  # it ran before, with its draft
            return StepOutput(None, None, self._runner.embed(step))
        record = self._runner.decode_alone(step.decode)
        return _together(record, StepOutput(None, None, self._runner.embed(step)))

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
