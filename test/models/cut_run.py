"""Runs tiny models of SGLang 0.5.23 whole and cut at every layer, and writes how far the numbers are apart.

python test/models/cut_run.py OUT.json [ARCH ...]; each of two ranks with RANK and PORT in the environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the slots of sliding-window pools come from a Triton kernel
os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"  # as the models
os.environ["SGLANG_OPT_USE_BF16_ROUTER_GEMM"] = "0"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # SGLang compiles small functions, for a minute
sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import tiny_model, use_the_cpu

use_the_cpu()
RANK, PORT = int(os.environ.get("RANK", "0")), os.environ.get("PORT")
if PORT is not None:
    os.environ["SGLANG_NCCL_SO_PATH"] = "/nonexistent.so"  # SGLang then falls back to gloo
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"

import torch  # noqa: E402
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch  # noqa: E402
from sglang.srt.layers.layer_boundary.residual.stream import OwedOutput, ResidualStream  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors  # noqa: E402
from torch import nn  # noqa: E402

from broken_models import refusal  # noqa: E402
from case_by_case import check_all  # noqa: E402
from families_on_cpu import FLAGS, use_references  # noqa: E402
from sglang_layered.core.plan import LayerGroup  # noqa: E402
from sglang_layered.errors import UnsupportedError  # noqa: E402
from sglang_layered.runner import layered_runner  # noqa: E402
from sglang_layered.runner.layered_runner import GroupRunner, GroupStep  # noqa: E402
from sglang_layered.runner.rows import hybrid_batch, join_rows  # noqa: E402
from sglang_layered.upstream.models import LayerCalls, LayerRanges, PipelineRanges, attend  # noqa: E402
from sglang_layered.upstream.probe import proved_ranges  # noqa: E402
from sglang_layered.upstream.runner import HybridAttention  # noqa: E402
from whole_model import WholeModel, close  # noqa: E402

DECODES = ((1, 4), (2, 11), (3, 7))  # row of the table, tokens before
PROMPTS = ((4, 0, 6), (5, 5, 9))  # row, tokens before, tokens
# SGLang takes none but a few names of attention for these; ours stands behind the name.
ATTENTION = {
    arch: {"attention_backend": "triton"} for arch in ("gpt_oss", "exaone_moe", "gemma4", "gemma4_moe")
}


class CutRunner(GroupRunner):
    """Joins prompt and decode rows as a server does, with decode rows beside the group layer by layer."""

    def __init__(self, model_runner: Any, ranges: LayerRanges) -> None:
        super().__init__(model_runner, LayerCalls(model_runner, ranges))

    def _around(self, step: GroupStep) -> tuple[Callable[[int], PPProxyTensors], Callable[..., Any]]:
        decode: Any = step.decode
        return lambda end: self._calls.below(decode, end), lambda *rows: self._calls.head(decode, *rows)


class Cuts:
    """A model, what it gives whole, and what its ranges give."""

    def __init__(self, whole: WholeModel) -> None:
        self.whole = whole
        self.ranges = proved_ranges(whole.runner)
        layered_runner.make_group_attention = lambda runner, backend: HybridAttention(
            backend, runner.attn_backend
        )
        self.runner = CutRunner(whole.runner, self.ranges)
        self.num_layers = self.ranges.num_layers
        self._fill()
        self._states = [part.clone() for part in whole.states()]
        self.prompt, self.decode = whole.prompt(*PROMPTS), whole.decode(*DECODES)
        self.want = {name: self._whole(batch) for name, batch in self._batches()}

    def _batches(self) -> list[tuple[str, ForwardBatch]]:
        return [("prompt", self.prompt), ("decode", self.decode)]

    def _fill(self) -> None:
        """What is in the cache before: prompts of those that decode, a prefix."""
        before = self.whole.prompt(*((row, 0, length) for row, length in DECODES), (5, 0, 5))
        self.whole.restart(before)
        self.whole.restart(self.whole.prompt((4, 0, 6)))
        self.whole.whole(before)

    @contextmanager
    def _afresh(self) -> Iterator[None]:
        """Recurrent states are as before the step."""
        for part, value in zip(self.whole.states(), self._states, strict=True):
            part.copy_(value)
        yield

    def _whole(self, batch: ForwardBatch) -> torch.Tensor:
        with self._afresh():
            return self.whole.whole(batch)

    def alone(self, batch: ForwardBatch, *cuts: int) -> torch.Tensor:
        """A batch's logits by ranges, from an embedding of its own."""
        edges = [*cuts, self.num_layers]
        with self._afresh(), self.whole.attending(batch):
            rows = self.ranges.run(batch, 0, 0, None)
            for start, end in zip([0, *cuts], edges, strict=True):
                rows = self.ranges.run(batch, start, end, rows) if start < end else rows
            assert batch.residual_stream is None, "nothing is left on a batch between ranges"
            output = self.ranges.run(batch, self.num_layers, self.num_layers, rows, last=True)
        return torch.Tensor.clone(output.next_token_logits)

    def in_two(self, batch: ForwardBatch, cut: int) -> torch.Tensor:
        """As decode rows pass: the embedding is of the first range, the head of the last."""
        with self._afresh(), self.whole.attending(batch):
            rows = self.ranges.run(batch, 0, cut, None)
            output = self.ranges.run(batch, cut, self.num_layers, rows, last=True)
        return torch.Tensor.clone(output.next_token_logits)

    def joined(self, group: LayerGroup) -> dict[str, torch.Tensor]:
        """Both batches' logits; in the group's layers they are one."""
        with self._afresh():
            parked = self._prompt_alone(0, group.start, None)
            step = GroupStep(self.prompt, self.decode, group, parked, is_new=False)
            rows = hybrid_batch(self.prompt, self.decode)
            with self.whole.running(rows):
                left = self.runner.run_layers(step, rows)
            logits = left.prompt_logits
            if logits is None:
                logits = self._prompt_alone(group.end, self.num_layers, left.parked)
        return {"prompt": logits.next_token_logits, "decode": left.decode_logits.next_token_logits}

    def joined_cut(self, *cuts: int) -> torch.Tensor:
        """Rows of both batches in all layers, by ranges; they are no logits."""
        attention = self.runner._attention.bind(self.prompt, self.decode)
        for batch, backend in (
            (self.prompt, attention.prompt_backend),
            (self.decode, self.whole.runner.attn_backend),
        ):
            backend.init_forward_metadata(batch)
        rows, edges = hybrid_batch(self.prompt, self.decode), [*cuts, self.num_layers]
        split = self.runner._split(self.prompt, self.decode)
        with self._afresh(), self.whole.running(rows), split, attend(attention, rows):
            left = join_rows(*(self.ranges.run(batch, 0, 0, None) for _, batch in self._batches()))
            for start, end in zip([0, *cuts], edges, strict=True):
                left = self.ranges.run(rows, start, end, left)
        return torch.cat([part.flatten() for part in left.tensors.values() if part is not None])

    def _prompt_alone(self, start: int, end: int, parked: PPProxyTensors | None) -> Any:
        """The prompt's rows through groups of their own, as a server runs them where nobody decodes."""
        if start == end:
            return parked
        step = GroupStep(self.prompt, None, LayerGroup(start, end), parked, is_new=start == 0)
        with self.whole.running(self.prompt):
            left = self.runner.run_layers(step, self.prompt)
        return left.parked if left.prompt_logits is None else left.prompt_logits

    def owed(self, batch: ForwardBatch) -> list[int]:
        """The inner cuts at which a layer hands a sum over ranks on to the next one, undone."""
        found, export = [], residual_batch.to_pp

        def noting(handed: Any, batch: ForwardBatch) -> Any:
            found.append(isinstance(handed, OwedOutput))
            return export(handed, batch)

        residual_batch.to_pp = noting
        self.alone(batch, *range(1, self.num_layers))
        residual_batch.to_pp = export
        return [cut for cut, is_owed in enumerate(found[1:], start=1) if is_owed and cut < self.num_layers]

    def aside(self) -> str:
        """What a start says of a model whose layer 3 looks at its neighbour."""
        stack = self.ranges.stack if isinstance(self.ranges, PipelineRanges) else self.whole.model
        layers = next(
            module
            for module in stack.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.num_layers
        )
        return refusal(self.whole.runner, layers[2], layers[3])

    def without_sums(self) -> str:
        """What a start says when sums are lost where layers are cut."""
        export = ResidualStream.export

        def partial_sums(stream: ResidualStream, hidden: Any, **kwargs: Any) -> Any:
            if stream.pending is not None:
                stream.pending.owed = None
                hidden = stream.pending.value
            return export(stream, hidden, **kwargs)

        ResidualStream.export = partial_sums
        try:
            proved_ranges(self.whole.runner)
        except UnsupportedError as error:
            return str(error)
        finally:
            ResidualStream.export = export
        return "served"

    def apart(self, name: str, logits: torch.Tensor) -> float:
        """The largest difference, by the largest of the logits."""
        want = self.want[name]
        return float((logits - want).abs().max() / want.abs().max())


def check(arch: str) -> dict[str, Any]:
    flags = FLAGS.get(arch, {}) | ATTENTION.get(arch, {})
    port = None
    if PORT is not None:  # ranks that meet where others have met wait for these
        flags["tp_size"], port = 2, int(PORT) + sys.argv.index(arch)
    cuts = Cuts(WholeModel(tiny_model(arch), RANK, port, **flags))
    inner = range(1, cuts.num_layers)
    again = max(cuts.apart(name, cuts._whole(batch)) for name, batch in cuts._batches())
    one_by_one = {name: cuts.apart(name, cuts.alone(batch, *inner)) for name, batch in cuts._batches()}
    alone = {
        cut: max(cuts.apart(name, cuts.alone(batch, cut)) for name, batch in cuts._batches()) for cut in inner
    }
    in_two = {
        cut: max(cuts.apart(name, cuts.in_two(batch, cut)) for name, batch in cuts._batches())
        for cut in range(cuts.num_layers + 1)
    }
    joined = {
        f"[{start}, {end})": max(
            cuts.apart(name, logits) for name, logits in cuts.joined(LayerGroup(start, end)).items()
        )
        for start, end in combinations(range(cuts.num_layers + 1), 2)
    }
    return {
        "model_class": type(cuts.whole.model).__name__,
        "ranges": type(cuts.ranges).__name__,
        "num_layers": cuts.num_layers,
        "again": again,
        "one_by_one": max(one_by_one.values()),
        "alone": max(alone.values()),
        "in_two": max(in_two.values()),
        "joined": max(joined.values()),
        "owed": cuts.owed(cuts.prompt),
        "without_sums": cuts.without_sums(),
        "aside": cuts.aside(),
        "joined_cut": torch.equal(cuts.joined_cut(), cuts.joined_cut(*inner)),
        "worst": {"alone": max(alone, key=alone.get), "joined": max(joined, key=joined.get)},
    }


def without_a_driver() -> None:
    """Torch's default device, which Qwen3-Next's layers ask for, is CUDA's without a driver as well."""
    module_of = torch.get_device_module
    torch.get_device_module = wraps(module_of)(
        lambda device=None: module_of("cpu" if device is None else device)
    )


if __name__ == "__main__":
    use_references()
    without_a_driver()
    check_all(Path(sys.argv[1]), sys.argv[2:], check, close)
