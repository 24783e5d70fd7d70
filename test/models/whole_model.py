"""One ModelRunner of SGLang 0.5.23 in this process, on a CPU, without a scheduler: batches by hand.

SGLang's state is global, so one model at a time; `close` forgets it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import bootstrap
from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.moe import initialize_moe_config
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import SpawnRanks, publish, reset_context
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_layered.upstream.cpu_choice import _make
from sglang_layered.upstream.models import attend
from sglang_layered.upstream.recurrent import clear_states, has_states
from sglang_layered.upstream.releases import forwarding

VOCAB = 1000
ROOM = 64  # slots of a request


class WholeModel:
    """A model with a table of requests that tests fill themselves; row i has slots from ROOM * (i + 1)."""

    def __init__(self, model_path: Path, rank: int = 0, port: int | None = None, **flags: Any) -> None:
        attention = flags.setdefault("attention_backend", "torch_native")
        ATTENTION_BACKENDS[attention] = _make  # our attention under a name that SGLang takes for this model
        args = ServerArgs(
            model_path=str(model_path),
            skip_tokenizer_init=True,
            random_seed=1,
            dtype="float32",
            device="cpu",
            max_total_tokens=2000,
            max_running_requests=16,
            disable_cuda_graph=True,
            **flags,
        )
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=rank, gpu_id=0))
        initialize_moe_config()
        ports = PortArgs.init_new(args)
        bootstrap.init_parallel_runtime(
            server_args=args, device="cpu", dist_port=ports.nccl_port if port is None else port
        )
        config = ModelConfig.from_server_args(args)
        bootstrap.init_layer_runtime(model_config=config)
        self.runner = ModelRunner(
            model_config=config,
            mem_fraction_static=0.5,
            gpu_id=0,
            nccl_port=ports.nccl_port,
            server_args=args,
        )
        self.runner.alloc_memory_pool()
        self.runner.init_attention_backends()
        self.runner.init_cuda_graphs()
        self.model = self.runner.model
        self.is_recurrent = mambaish_config(config) is not None

    def prompt(self, *requests: tuple[int, int, int]) -> ForwardBatch:
        """A prompt batch; of each request its row, its tokens before this batch and its tokens in it."""
        rows, prefixes, lengths = zip(*requests, strict=True)
        batch = self._batch(ForwardMode.EXTEND, rows, prefixes, lengths)
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        batch.extend_num_tokens = sum(lengths)
        batch.extend_seq_lens = torch.tensor(lengths, dtype=torch.int32)
        batch.extend_prefix_lens = torch.tensor(prefixes, dtype=torch.int32)
        batch.extend_start_loc = torch.tensor(starts, dtype=torch.int32)
        batch.extend_seq_lens_cpu, batch.extend_prefix_lens_cpu = list(lengths), list(prefixes)
        batch.extend_logprob_start_lens_cpu = list(prefixes)
        return batch

    def decode(self, *requests: tuple[int, int]) -> ForwardBatch:
        """A decode batch; of each request its row and its tokens before this step."""
        rows, prefixes = zip(*requests, strict=True)
        return self._batch(ForwardMode.DECODE, rows, prefixes, [1] * len(rows))

    def whole(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits of SGLang's own forward of a model, all layers at once."""
        with self.attending(batch):
            output = self.model.forward(batch.input_ids, batch.positions.clone(), batch)
        return torch.Tensor.clone(output.next_token_logits)

    @contextmanager
    def attending(self, batch: ForwardBatch) -> Iterator[None]:
        """Attention is planned for a batch; a prompt's states start from zeros."""
        self.runner.attn_backend.init_forward_metadata(batch)
        with self.running(batch):
            yield

    @contextmanager
    def running(self, batch: ForwardBatch) -> Iterator[None]:
        """As SGLang's `_forward_raw` has it around a model."""
        with (
            torch.no_grad(),
            forwarding.settings_of(self.runner),
            attend(self.runner.attn_backend, batch),
        ):
            yield

    def restart(self, batch: ForwardBatch) -> None:
        """States of these requests from zeros; a forward has moved them on."""
        if has_states(self.runner):
            clear_states(self.runner, batch)

    def states(self) -> list[torch.Tensor]:
        """Every tensor of recurrent states, not copied."""
        if not has_states(self.runner):
            return []
        pool = self.runner.req_to_token_pool.mamba_pool
        return [part for value in vars(pool.mamba_cache).values() for part in _tensors(value)]

    def _batch(
        self, mode: ForwardMode, rows: Sequence[int], prefixes: Sequence[int], lengths: Sequence[int]
    ) -> ForwardBatch:
        runner, sizes = self.runner, [sum(pair) for pair in zip(prefixes, lengths, strict=True)]
        spans = list(zip(rows, prefixes, sizes, strict=True))
        table = runner.req_to_token_pool.req_to_token
        if has_states(runner):
            for row in rows:
                runner.req_to_token_pool.req_index_to_mamba_index_mapping[row] = row + 1
        for row, _, size in spans:
            table[row, :size] = slots_of(row, 0, size).to(table.dtype)
        slots = torch.cat([slots_of(*span) for span in spans])
        positions = torch.cat([torch.arange(low, high) for _, low, high in spans])
        mapping = getattr(runner.token_to_kv_pool_allocator, "full_to_swa_index_mapping", None)
        if mapping is not None:
            mapping[slots] = slots.to(mapping.dtype)
        lens = torch.tensor(sizes)
        batch = ForwardBatch(
            forward_mode=mode,
            global_forward_mode=mode,
            batch_size=len(rows),
            input_ids=(slots * 7 + 3) % VOCAB,
            req_pool_indices=torch.tensor(rows),
            seq_lens=lens,
            seq_lens_cpu=lens.clone(),
            orig_seq_lens=lens.int(),
            seq_lens_sum=sum(sizes),
            out_cache_loc=slots,
            positions=positions,
            mrope_positions=positions.repeat(3, 1) if runner.model_config.model_is_mrope else None,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            lora_ids=[None] * len(rows),
            rids=[str(row) for row in rows],
            global_num_token_non_padded_cpu=len(slots),
        )
        runner._prepare_eager_forward_batch(batch)
        return batch


def slots_of(row: int, low: int, high: int) -> torch.Tensor:
    """Where the tokens [low, high) of a request lie."""
    return torch.arange(low, high) + ROOM * (row + 1)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def close() -> None:
    """Forget SGLang's global state, so that the next model starts as in a new process."""
    destroy_model_parallel()
    destroy_distributed_environment()
    bootstrap._PARALLEL_INITIALISED = False
    reset_context()
    gc.collect()
