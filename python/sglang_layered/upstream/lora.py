"""SGLang's LoRA: which adapter each row of the layers that run next has.

SGLang prepares that once a forward, for the one batch that it runs: the adapted modules read it from their
backend when they run. A layered step runs prompt rows, decode rows and both together by turns, so each has a
state of its own, which is swapped before its layers run. Upstream: srt/lora/lora_manager.py,
srt/lora/backend/base_backend.py `reset_batch_state`, srt/lora/utils.py `generate_sequence_lengths`.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, ScheduleBatch
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from sglang_layered.upstream.releases import arguments, serving

# What of a backend is of one batch.
STATE = (
    "batch_info",
    "sgemm_batch_info",
    "lm_head_batch_info",
    "lm_head_pass_batch_infos",
    "_lm_head_pass_idx",
)

GIVEN_BACK = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)


class Adapters:
    """The adapters of one ModelRunner."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    @classmethod
    def of(cls, model_runner: Any) -> "Adapters | None":
        """None without --enable-lora: nothing is called then, several times a step."""
        return (
            cls(model_runner.lora_manager)
            if arguments.resolved(model_runner.server_args).enable_lora
            else None
        )

    def fetch(self, *batches: ScheduleBatch) -> None:
        """Have the adapters of all these requests in SGLang's pool.

        In one call: a call for one batch may evict the adapters of the other. SGLang admits prompts only as
        long as their adapters and those of running requests fit together (--max-loras-per-batch).
        """
        self._manager.fetch_new_loras({req.lora_id for batch in batches for req in batch.reqs})

    @contextmanager
    def kept_apart(self) -> Iterator[None]:
        """What is prepared inside stays as it is when other rows are prepared.

        For prompts SGLang has one set of buffers that its prefill graphs read, and fills it whether a graph
        will run or not. A layered step runs none for a prompt, and needs prompt and joined rows side by side.
        Decode rows keep theirs: a step has one decode batch, and SGLang's own decode graph may run it.
        """
        backend = self._manager.lora_backend
        most, backend.prefill_cuda_graph_max_bs = backend.prefill_cuda_graph_max_bs, None
        try:
            yield
        finally:
            backend.prefill_cuda_graph_max_bs = most

    def note(self, batch: ForwardBatch) -> None:
        """Keep what SGLang has just prepared for a batch."""
        state = vars(self._manager.lora_backend)
        # A plain attribute, no field: `dataclasses.replace` does not copy it to rows of another kind.
        carrier: Any = batch
        carrier.layered_adapters = {name: state[name] for name in STATE if name in state}

    def prepare(self, batch: ForwardBatch, rows: ForwardBatch | None = None) -> None:
        """Prepare a batch and note it on `rows`, or on itself."""
        with self.kept_apart():
            self._manager.prepare_lora_batch(batch)
        self.note(batch if rows is None else rows)

    def join(self, rows: ForwardBatch, prompt: ForwardBatch, decode: ForwardBatch) -> None:
        """Prepare the joined rows of a group: prompts as they are, one row a request that decodes."""
        ones = torch.ones_like(decode.seq_lens, dtype=prompt.extend_seq_lens.dtype)
        joined = replace(
            rows,
            extend_seq_lens=torch.cat([prompt.extend_seq_lens, ones]),
            extend_seq_lens_cpu=[*prompt.extend_seq_lens_cpu, *[1] * decode.batch_size],
            extend_num_tokens=rows.input_ids.shape[0],
            return_logprob=False,  # no logits are made of joined rows
        )
        self.prepare(joined, rows)

    def use(self, batch: ForwardBatch) -> None:
        """Layers that run from now on have the rows of this batch."""
        carrier: Any = batch
        vars(self._manager.lora_backend).update(carrier.layered_adapters)


class EndsByOutputs:
    """SGLang's way to the tokenizer process, on which an output ends whatever has an adapter.

    There an adapter is in use until an output ends its request; an AbortReq leaves it in use for ever, and
    whoever unloads it waits as long. Of a request that a status 500 or 503 ends it is given back in another
    place, and an output would give it back twice. Upstream: srt/managers/tokenizer_manager.py
    `_handle_abort_req`, `_handle_abort_finish_reason`.
    """

    def __init__(self, scheduler: Any) -> None:
        self._sender = scheduler.ipc_channels.send_to_tokenizer
        self._streamer = scheduler.output_streamer

    @classmethod
    def install(cls, scheduler: Any) -> None:
        """Put it in place, if there are adapters that need it; SGLang's class is frozen."""
        if arguments.resolved(scheduler.server_args).enable_lora and not serving.GIVES_ADAPTERS_BACK:
            object.__setattr__(scheduler.ipc_channels, "send_to_tokenizer", cls(scheduler))

    def __getattr__(self, name: str) -> Any:
        """All else is SGLang's."""
        return getattr(self._sender, name)

    def send_output(self, output: Any, source: Any = None) -> None:
        """As SGLang's; `source` is what the output answers, here a request that waits or ran."""
        is_end = isinstance(output, AbortReq) and getattr(source, "lora_id", None) is not None
        if not is_end or (output.finished_reason or {}).get("status_code") in GIVEN_BACK:
            self._sender.send_output(output, source)
            return
        source.finished_reason = source.finished_reason or FINISH_ABORT("Abort in waiting queue")
        source.time_stats.set_completion_time()
        self._streamer.stream_output([source], source.return_logprob)


class LeftBehind:
    """Requests that the tokenizer process has forgotten, until the scheduler ends them, and their adapters.

    It forgets a request at once when its client hangs up or its tokenization fails, and then no output finds
    whose adapter to give back: an unload of it never answers. Given back at once, the adapter could be
    unloaded under rows that still run. Upstream: srt/managers/tokenizer_manager.py `generate_request`.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._adapter_of: dict[str, str] = {}  # by request
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, manager: Any) -> "LeftBehind":
        """Those of a tokenizer manager."""
        if not hasattr(manager, "layered_left_behind"):
            manager.layered_left_behind = cls(manager)
        found: LeftBehind = manager.layered_left_behind
        return found

    def __len__(self) -> int:
        return len(self._adapter_of)

    def note(self, obj: Any, lifecycles: dict[str, object] | None) -> None:
        """SGLang is about to forget what is left of a client's request or batch of requests."""
        if getattr(obj, "parallel_sample_num", 1) > 1:
            return  # of several answers to one prompt SGLang counts more ends than starts
        for rid in self._manager._logical_rids(obj):
            state = self._manager.rid_to_state.get(rid)
            if state is None or not (state.obj.lora_path and state.obj.lora_id):
                continue
            if lifecycles is not None and state.lifecycle_id is not lifecycles.get(rid):
                continue
            self._adapter_of[rid] = state.obj.lora_id
            if not state.dispatched:
                self.end([rid])

    def end(self, rids: Iterable[str]) -> None:
        """The scheduler has nothing of these any more."""
        adapters = [self._adapter_of.pop(rid) for rid in rids if rid in self._adapter_of]
        if adapters:
            task = asyncio.create_task(self._manager.lora_registry.release(adapters))
            self._tasks.add(task)  # the loop keeps no task alive
            task.add_done_callback(self._tasks.discard)


class ForgetfulManager(TokenizerManager):
    """What SGLang's TokenizerManager does instead of its own where layered mode has adapters."""

    async def _validate_and_resolve_lora(self, obj: Any) -> None:
        if obj.lora_path:
            obj.lora_id = None  # a client may send one, which nobody has counted
        await STOCK["_validate_and_resolve_lora"](self, obj)

    def _discard_pending_req_states(self, obj: Any, lifecycle_ids: dict[str, object] | None = None) -> None:
        LeftBehind.of(self).note(obj, lifecycle_ids)
        STOCK["_discard_pending_req_states"](self, obj, lifecycle_ids)

    async def _handle_batch_output(self, recv_obj: Any) -> None:
        await STOCK["_handle_batch_output"](self, recv_obj)
        if left := LeftBehind.of(self):
            reasons = zip(recv_obj.rids, recv_obj.finished_reasons, strict=True)
            left.end(rid for rid, reason in reasons if reason is not None)

    def _handle_abort_req(self, recv_obj: Any) -> None:
        STOCK["_handle_abort_req"](self, recv_obj)
        LeftBehind.of(self).end([recv_obj.rid])


METHODS = [name for name, member in vars(ForgetfulManager).items() if callable(member)]
STOCK = {name: vars(TokenizerManager)[name] for name in METHODS if name in vars(TokenizerManager)}


def give_back_what_is_left_behind() -> None:
    """Put the methods in place where SGLang needs them, before a process that answers clients has a manager.

    Raises:
        NotImplementedError: this release forgets requests in a way that nobody has read.
    """
    if serving.GIVES_ADAPTERS_BACK:
        return
    missing = [name for name in METHODS if name not in STOCK]
    if missing:
        raise NotImplementedError(
            f"adapters in layered mode: this SGLang has no {missing}; use SGLang 0.5.17"
        )
    for name in METHODS:
        setattr(TokenizerManager, name, vars(ForgetfulManager)[name])
