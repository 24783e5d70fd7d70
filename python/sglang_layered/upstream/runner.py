"""SGLang's ModelRunner from within: what rides on a batch into its forward, and its attention backends.

A group's layers have prompt rows and decode rows: prompt rows attend as extend on one backend, decode rows as
decode on another. Where the backend cannot cut them apart (MLA: its modules choose their kernels by the
batch's forward mode), the attention modules are run twice. Upstream: srt/model_executor/model_runner.py,
srt/layers/attention/base_attn_backend.py, srt/models/deepseek_v2.py `DeepseekV2AttentionMLA`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunnerOutput
from torch import nn

from sglang_layered.upstream.chosen_tokens import TAKEN, joined_outputs
from sglang_layered.upstream.lora import Adapters
from sglang_layered.upstream.mixers import SplitMixers, mixers_of
from sglang_layered.upstream.models import attend
from sglang_layered.upstream.recurrent import start_states
from sglang_layered.upstream.releases import boundaries

# Backends that read the request pool while they plan, and never in a layer.
READ_IN_PLANS = frozenset({"FlashAttentionBackend", "FlashInferAttnBackend", "TritonAttnBackend"})
ROW_ARGUMENTS = frozenset({"q_rope", "k_rope", "idx_q", "idx_k", "idx_v"})
MODULE_ROWS = (TAKEN, "llama_4_scaling")  # what attention modules get beside hidden states and positions
HEAD_ARGUMENTS = frozenset({"sinks", "cos_sin_cache", "is_neox", "llama_4_scaling"})
LAYER_SCRATCH = ("workspace", "problem_sizes1")


class Carried:
    """Rides on a ForwardBatch into `ModelRunner.forward`; the seam in `_forward_raw` runs it there.

    So the expert recorder, step spans, canary and dumper of `ModelRunner.forward` come as in stock.
    `num_rows` are the prompt and decode rows of what is run.
    """

    def __init__(self, rows: ForwardBatch, run: Callable[[], Any], num_rows: tuple[int, int]) -> None:
        self._run = run
        self.num_rows = num_rows
        # A plain attribute, no field: `dataclasses.replace` does not copy it, so no other forward meets it.
        carrier: Any = rows
        carrier.layered_step = self

    def run(self, model_runner: Any) -> ModelRunnerOutput:
        """Run it in place of the stock forward."""
        # `logits_output` is whatever `_run` gives: from `_forward_raw` to our caller nothing looks into it.
        record = ModelRunnerOutput(logits_output=self._run(), can_run_graph=False)
        del self._run  # it holds the batch that this rides on, with all its tensors
        return record


def new_prompt_backend(model_runner: Any) -> Any:
    """An attention backend for prompts alone."""
    # With a workspace of its own: a prompt's plan is kept over steps in which the runner's backend plans
    # again, and with `--layered-execution concurrent` both run at the same time.
    return model_runner._get_attention_backend(init_new_workspace=True)


def share_scratch(one: Any, other: Any) -> bool:
    """True when two attention backends write the same workspace, and so must not run at the same time.

    Some take one of their process by its name, whatever `init_new_workspace` says (trtllm_mha, trtllm_mla,
    flashinfer for MLA).
    """
    return bool(_workspaces(one) & _workspaces(other))


def layer_with_scratch(model: nn.Module) -> str | None:
    """The first layer whose kernels write memory of its own, so that two calls must not run at the same time.

    Marlin's have locks in `workspace`, CUTLASS's grouped products are told of experts in `problem_sizes1`.
    The layer has them itself, or what quantizes it has.
    """
    for name, module in model.named_modules():
        for holder in (module, getattr(module, "scheme", None), getattr(module, "quant_method", None)):
            if any(isinstance(getattr(holder, scratch, None), torch.Tensor) for scratch in LAYER_SCRATCH):
                return name
    return None


def _workspaces(backend: Any) -> set[int]:
    """Addresses of a backend's workspaces and of those of the backends inside it."""
    found: set[int] = set()
    for name, value in vars(backend).items():
        if "workspace" in name and isinstance(value, torch.Tensor):
            found.add(value.untyped_storage().data_ptr())
        elif isinstance(value, AttentionBackend):
            found |= _workspaces(value)
    return found


def plan_attention(
    model_runner: Any, prompt_backend: Any, prompt: ForwardBatch | None, decode: ForwardBatch | None
) -> None:
    """Plan a prompt before its first group, on the backend that keeps the plan; decode rows every step."""
    for batch, backend in ((prompt, prompt_backend), (decode, model_runner.attn_backend)):
        if batch is not None:
            # `_forward_raw` does this before any eager forward; the seam returns ahead of that.
            model_runner._prepare_eager_forward_batch(batch)
            backend.init_forward_metadata(batch)
    if prompt is not None:
        start_states(model_runner, prompt)


def pool_is_read_in_plans(model_runner: Any, prompt_backend: Any) -> bool:
    """True on a GPU where attention has read all that says where KV lies once it is planned.

    Then SGLang may write there for its next step while the layers run. Its own graphs say so with an event,
    without which it waits for the whole forward. Upstream: srt/managers/scheduler.py `_apply_war_barrier`.
    """
    backends = {type(backend).__name__ for backend in (prompt_backend, model_runner.attn_backend)}
    is_plain = not (model_runner.use_mla_backend or model_runner.is_hybrid_swa or model_runner.canary_manager)
    return bool(model_runner.device == "cuda" and is_plain and backends <= READ_IN_PLANS)


def preparation_of(model_runner: Any) -> Callable[[ForwardBatch], None]:
    """What SGLang does to a batch before an eager forward; for joined rows, for which nothing is planned."""
    prepare: Callable[[ForwardBatch], None] = model_runner._prepare_eager_forward_batch
    return prepare


def attention_split(
    model_runner: Any, prompt_backend: Any
) -> Callable[[ForwardBatch, ForwardBatch], AbstractContextManager[None]]:
    """What cuts a group's rows in attention modules and mixers, where the attention backend cannot do it."""
    if model_runner.use_mla_backend:
        return SplitAttention(model_runner, prompt_backend).bound
    if mixers_of(model_runner.model):
        return SplitMixers(model_runner, prompt_backend).bound
    return lambda prompt, decode: nullcontext()


class HybridAttention(AttentionBackend):
    """Two attention backends behind one, for rows `[prompt; decode]`.

    They are separate instances because decode plans anew every step while the prompt's plan lives until its
    last group. Class attributes are copied: `__getattr__` never sees a name that the base class defines.
    """

    # A model with an indexer asks whether all rows attend by expanded keys, so that no choice of tokens goes
    # on to the next layers; decode rows never do.
    use_mha = False

    def __init__(self, prompt_backend: Any, decode_backend: Any) -> None:
        super().__init__()
        self.prompt_backend = prompt_backend
        self.decode_backend = decode_backend
        self.needs_cpu_seq_lens = decode_backend.needs_cpu_seq_lens
        self.prefill_attention_backend_str = decode_backend.prefill_attention_backend_str
        self.decode_attention_backend_str = decode_backend.decode_attention_backend_str
        self._prompt: ForwardBatch | None = None
        self._decode: ForwardBatch | None = None
        self._num_prompt_rows = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "decode_backend" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.decode_backend, name)

    def bind(self, prompt: ForwardBatch, decode: ForwardBatch) -> "HybridAttention":
        """Attend for these two batches from now on."""
        self._prompt, self._decode = prompt, decode
        self._num_prompt_rows = prompt.input_ids.shape[0]
        return self

    def forward(
        self,
        q: Any = None,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        layer: Any = None,
        forward_batch: ForwardBatch | None = None,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention output [prompt rows + decode rows, heads * head_dim]; q, k, v are cut by rows.

        With an indexer it is the second of a pair, behind the indexer's own or None. A linear layer's is [1,
        rows, heads, head_dim], as its backend's; it has other arguments, row by row.
        """
        if q is None:
            return self._linear(layer, kwargs)
        q, cut, prompt_kwargs, decode_kwargs = _rows_first(q), self._num_prompt_rows, kwargs, kwargs
        sizes = (cut, q.shape[0] - cut)
        prompt_q, decode_q = q.split_with_sizes(sizes)
        prompt_k, decode_k = _cut(_rows_first(k), sizes)
        prompt_v, decode_v = _cut(v, sizes)
        if kwargs:
            prompt_kwargs, decode_kwargs = _cut_arguments(kwargs, sizes)
        prompt = self.prompt_backend.forward(
            prompt_q, prompt_k, prompt_v, layer, self._prompt, save_kv_cache, **prompt_kwargs
        )
        decode = self.decode_backend.forward(
            decode_q, decode_k, decode_v, layer, self._decode, save_kv_cache, **decode_kwargs
        )
        if isinstance(prompt, tuple):  # an indexer's own output, or None, before attention's (MiniMax-M3)
            pairs = zip(prompt, decode, strict=True)
            return tuple(None if one is None else torch.cat([one, two]) for one, two in pairs)
        return torch.cat([prompt.flatten(1), decode.flatten(1)])

    def _linear(self, layer: Any, rows: Mapping[str, Any]) -> torch.Tensor:
        """Every request's state has a slot of its own. Upstream: srt/layers/radix_linear_attention.py."""
        cut = self._num_prompt_rows
        prompt = {name: _part(value, slice(None, cut)) for name, value in rows.items()}
        decode = {name: _part(value, slice(cut, None)) for name, value in rows.items()}
        outputs = [
            self.prompt_backend.forward(layer=layer, forward_batch=self._prompt, **prompt),
            self.decode_backend.forward(layer=layer, forward_batch=self._decode, **decode),
        ]
        return torch.cat(outputs, dim=1)


def _part(value: Any, rows: slice) -> Any:
    return tuple(part[rows] for part in value) if isinstance(value, tuple) else value[rows]


def _rows_first(tensor: Any) -> Any:
    """Some models hand over [1, rows, heads, head_dim] (upstream: srt/models/gemma3_causal.py)."""
    return tensor.squeeze(0) if tensor is not None and tensor.dim() == 4 else tensor


def _cut(tensor: torch.Tensor | None, sizes: tuple[int, ...]) -> Sequence[torch.Tensor | None]:
    return (None, None) if tensor is None else tensor.split_with_sizes(sizes)


def _cut_arguments(kwargs: dict[str, Any], sizes: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    unknown = kwargs.keys() - ROW_ARGUMENTS - HEAD_ARGUMENTS
    if unknown:
        raise NotImplementedError(f"attention arguments {sorted(unknown)} are unknown to layered mode")
    cut = {name: _cut(value, sizes) for name, value in kwargs.items() if name in ROW_ARGUMENTS}
    prompt, decode = ({name: parts[part] for name, parts in cut.items()} for part in (0, 1))
    return kwargs | prompt, kwargs | decode


class SplitAttention:
    """Runs the `self_attn` of each layer twice: prompt rows as extend, decode rows as decode."""

    def __init__(self, model_runner: Any, prompt_backend: Any) -> None:
        self._backends = (prompt_backend, model_runner.attn_backend)
        self._adapters = Adapters.of(model_runner)
        modules: Iterator[tuple[str, nn.Module]] = model_runner.model.named_modules()
        # LongCat-Flash has two in a layer, `self_attn.0` and `self_attn.1`; nobody calls their list.
        self._modules = [
            module for name, module in modules if name.rstrip(".0123456789").rpartition(".")[2] == "self_attn"
        ]

    @contextmanager
    def bound(self, prompt: ForwardBatch, decode: ForwardBatch) -> Iterator[None]:
        """Inside, rows `[prompt; decode]` are cut for these two batches."""
        forwards = [module.forward for module in self._modules]
        for module, forward in zip(self._modules, forwards, strict=True):
            vars(module)["forward"] = self._splitter(module, forward, (prompt, decode))
        try:
            yield
        finally:
            for module in self._modules:
                del vars(module)["forward"]

    def _splitter(
        self, module: Any, forward: Callable[..., Any], batches: tuple[ForwardBatch, ForwardBatch]
    ) -> Callable[..., Any]:
        num_prompt_rows = batches[0].input_ids.shape[0]
        parts = (slice(None, num_prompt_rows), slice(num_prompt_rows, None))

        def split(
            positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch, **kwargs: Any
        ) -> Any:
            outputs = []
            by_row = {name: kwargs[name] for name in MODULE_ROWS if kwargs.get(name) is not None}
            for rows, batch, backend in zip(parts, batches, self._backends, strict=True):
                if self._adapters is not None:
                    self._adapters.use(batch)
                boundaries.give_rows(module, hidden_states[rows], batch)
                cut = {name: value[rows] for name, value in by_row.items()}
                with attend(backend, batch):
                    outputs.append(
                        forward(
                            positions=positions[rows],
                            hidden_states=hidden_states[rows],
                            forward_batch=batch,
                            **kwargs | cut,
                        )
                    )
            if self._adapters is not None:
                self._adapters.use(forward_batch)
            return joined_outputs(*outputs)

        return split
