"""SGLang's real Scheduler in this process, stepped by hand: no HTTP, no tokenizer, no second process.

One scheduler per process (SGLang's distributed state is global), so tests share it and flush it.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt import runtime_context
from sglang.srt.managers import scheduler as managers
from sglang.srt.managers.io_struct import (
    AbortReq,
    CloseSessionReqInput,
    OpenSessionReqInput,
    PauseGenerationReqInput,
    SessionParams,
    SetInternalStateReq,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.utils import is_cuda

from sglang_layered.config import LayeredConfig
from sglang_layered.core.events import Event
from sglang_layered.listeners.dispatch import Listener
from sglang_layered.scheduler.base_loop import BaseLoop
from sglang_layered.scheduler.loop import LayeredLoop
from sglang_layered.scheduler.observer import observe

START = {"layered_prefill": 1, "layered_group_tokens": 64, "layered_num_groups": 0}
ON_CUDA = {"device": "cuda", "attention_backend": "triton"}  # the default there takes no float32


@dataclass(frozen=True)
class Rank:
    """Which rank of several this process is, and where they meet; every rank must be stepped alike."""

    tensor: int = 0
    expert: int = 0
    port: int | None = None

    @property
    def of_scheduler(self) -> tuple[Any, ...]:
        """What 0.5.17's Scheduler takes: device, tensor, expert, pipeline, context, expert data, data."""
        return () if self.published else (self.tensor, self.tensor, self.expert, 0, 0, 0, None)

    @property
    def published(self) -> dict[str, Any]:
        """What 0.5.23 publishes of them with the arguments; experts follow from sizes."""
        spawned = getattr(runtime_context, "SpawnRanks", None)
        return {} if spawned is None else {"ranks": spawned(self.tensor, gpu_id=self.tensor)}


class Outbox:
    """Stands where the scheduler's sockets stand and keeps what it would send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_output(self, output: Any, recv_obj: Any = None) -> None:
        self.sent.append(output)


def listen(loop: BaseLoop, listener: Listener) -> None:
    """Let one more hear a loop that was made."""
    loop.report._listeners.attach(listener)
    loop.stream.remove(loop.report)
    loop.stream.add(loop.report)
    loop.is_heard = True


class SteppedScheduler:
    """A layered scheduler whose steps a test makes one by one."""

    def __init__(self, model_path: Path, rank: Rank = Rank(), **flags: Any) -> None:
        defaults = {"dtype": "float32", "layered_check_invariants": "strict", "prefill_mode": "layered"}
        defaults |= ON_CUDA if is_cuda() else {"device": "cpu"}
        args = ServerArgs(
            model_path=str(model_path),
            skip_tokenizer_init=True,
            random_seed=1,
            **defaults | flags,
        )
        runtime_context.publish(args, role="scheduler", **rank.published)
        ports = PortArgs.init_new(args)
        if rank.port is not None:
            ports.nccl_port = rank.port
        self.scheduler = managers.Scheduler(args, ports, *rank.of_scheduler)
        self._enter_streams()
        self.tokenizer, self.detokenizer = Outbox(), Outbox()
        channels = self.scheduler.ipc_channels
        object.__setattr__(channels, "send_to_tokenizer", self.tokenizer)
        object.__setattr__(self.scheduler.output_streamer, "send_to_detokenizer", self.detokenizer)
        self.events: list[Event] = []
        self.reqs: dict[str, Any] = {}
        self._names = itertools.count()
        if args.prefill_mode == "layered":
            self._make_loop(args)

    def _make_loop(self, args: ServerArgs) -> None:
        observe(self.scheduler)
        self.loop = LayeredLoop(self.scheduler, LayeredConfig.from_server_args(args))
        self.scheduler.layered_loop = self.loop
        listen(self.loop, self)
        self.num_layers = self.loop.stages.num_layers

    def _enter_streams(self) -> None:
        """Streams and barrier as SGLang's own door makes them, kept: it runs its loop inside."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(managers, "dispatch_event_loop", lambda scheduler: None)
            self.scheduler.run_event_loop()
        self.scheduler.device_module.StreamContext(self.scheduler.schedule_stream).__enter__()

    def on_event(self, event: Event) -> None:
        """Listen to the loop."""
        self.events.append(event)

    def change(self, settings: dict[str, float]) -> bool:
        """Ask for other settings, as `/set_internal_state` does."""
        reply = self.scheduler.set_internal_state(SetInternalStateReq(server_args=settings))
        return bool(reply.updated)

    def change_back(self) -> None:
        """Settings as at the start; the scheduler's own `chunked_prefill_size` is the budget in force."""
        budget = self.scheduler.server_args.chunked_prefill_size
        assert self.change(START | {"layered_cohort_tokens": budget})

    def limit_running(self, most: int) -> None:
        """At most so many requests at a time, as `--max-running-requests` says, by SGLang's own setting."""
        assert self.change({"pp_max_micro_batch_size": most})

    def open_session(self, name: str) -> None:
        """Open a streaming session."""
        opened = OpenSessionReqInput(capacity_of_str_len=10**6, session_id=name, streaming=True)
        self.scheduler.open_session(opened)
        assert name in self.scheduler.session_controller.sessions

    def close_session(self, name: str) -> None:
        """Close a session; SGLang does so in the end when a turn is in flight."""
        self.scheduler.close_session(CloseSessionReqInput(session_id=name))

    def send(
        self, prompt: Sequence[int], max_new_tokens: int, session: str | None = None, **params: Any
    ) -> str:
        """Queue a request, or the next turn of a session; returns its id."""
        rid = f"r{next(self._names)}"
        sampling = SamplingParams(
            temperature=0.0, max_new_tokens=max_new_tokens, ignore_eos=True, **params.pop("sampling", {})
        )
        sampling.normalize(None)
        sampling.verify(self.scheduler.model_config.vocab_size)
        message = TokenizedGenerateReqInput(
            rid=rid,
            input_text=None,
            input_ids=array("q", prompt),
            input_embeds=None,
            mm_inputs=params.pop("mm_inputs", None),
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=params.pop("return_logprob", False),
            logprob_start_len=params.pop("logprob_start_len", -1),
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=True,
            **({} if session is None else {"session_params": SessionParams(id=session)}),
            **params,
        )
        self.scheduler.process_input_requests([message])
        self.reqs[rid] = self.scheduler.waiting_queue[-1]
        return rid

    def step(self, times: int = 1) -> None:
        """Run engine steps."""
        for _ in range(times):
            if not self.scheduler._engine_paused:
                self.loop.step()

    def run_stock(self, on_turn: Callable[[], bool]) -> None:
        """Run SGLang's own overlap loop; `on_turn`, called as a turn begins, says whether more follow."""
        scheduler = self.scheduler

        def receive(**_: Any) -> list[Any]:
            scheduler.gracefully_exit = not on_turn()
            return []

        self.loop.results.process_all()
        scheduler.last_batch, queue = None, scheduler.result_queue
        receiver, scheduler.request_receiver = (
            scheduler.request_receiver,
            SimpleNamespace(recv_requests=receive),
        )
        scheduler.event_loop_overlap()
        scheduler.request_receiver, scheduler.gracefully_exit = receiver, False
        for batch, result in scheduler.result_queue:
            scheduler.process_batch_result(batch, result)
        scheduler.result_queue, scheduler.last_batch = queue, None

    def step_late(self) -> None:
        """A step in which SGLang looks who is late; 0.5.23 does so where it takes requests in."""
        poll = getattr(self.scheduler, "_poll_timeout_aborts", None)
        if poll is not None:
            self.scheduler.process_input_requests(poll())
        self.step()

    @property
    def num_cached(self) -> int:
        """Tokens in the prefix cache; 0.5.23 also counts what its tree has beside them."""
        size = self.scheduler.tree_cache.total_size()
        return int(size if isinstance(size, int) else size[0])

    def step_until(self, condition: Any, limit: int = 400) -> None:
        """Step until `condition()` holds."""
        for _ in range(limit):
            if condition():
                return
            self.step()
        raise AssertionError(f"not reached within {limit} steps")

    def finish(self, *rids: str) -> list[list[int]]:
        """Step until these requests are finished; returns their output tokens."""
        self.step_until(lambda: all(self.reqs[rid].finished() for rid in rids))
        # A verified step may have given a request more tokens than it asked for.
        return [list(self.reqs[rid].output_ids_through_stop) for rid in rids]

    def abort(self, rid: str) -> None:
        """Deliver an abort message, as a disconnecting client causes."""
        self.scheduler.process_input_requests([AbortReq(rid=rid)])

    def pause(self, mode: str) -> None:
        """Pause generation."""
        self.scheduler.pause_generation(PauseGenerationReqInput(mode=mode))

    def resume(self) -> None:
        """Continue after a pause."""
        self.scheduler._engine_paused = False

    @contextmanager
    def queue_policy(self, name: str, *, priority: bool = False, preempts: bool = False) -> Iterator[None]:
        """Another order of those that wait."""
        scheduler, reporter = self.scheduler, self.scheduler.metrics_reporter
        with pytest.MonkeyPatch.context() as patch:
            # its labels were made without priorities
            patch.setattr(reporter, "current_scheduler_metrics_enabled", False)
            patch.setattr(reporter, "stats", type(reporter.stats)())  # kept, and told when idle
            order = SchedulePolicy(name, scheduler.tree_cache, False, priority, False)
            patch.setattr(scheduler, "policy", order)
            patch.setattr(scheduler, "enable_priority_scheduling", priority)
            patch.setattr(scheduler, "enable_priority_preemption", preempts)
            yield

    @contextmanager
    def full_pool(self) -> Iterator[None]:
        """Take every free KV slot away, and tell SGLang's own leak check about it."""
        allocator, checker = self.scheduler.token_to_kv_pool_allocator, self.scheduler.invariant_checker
        taken = allocator.alloc(allocator.available_size())
        checker.max_total_num_tokens -= len(taken)
        yield
        allocator.free(taken)
        checker.max_total_num_tokens += len(taken)

    def drain(self) -> None:
        """Step until idle, check that nothing leaked, and empty the prefix cache."""
        self.step_until(self.scheduler.is_fully_idle)
        self.step()
        assert len(self.loop.cohorts.ledger) == 0
        assert not self.scheduler.running_batch.batch_is_full, "an idle scheduler would admit nobody"
        assert self.scheduler.flush_cache(empty_cache=False), "the scheduler is not idle"
        self.reqs.clear()
        self.events.clear()
        self.tokenizer.sent.clear()
        self.detokenizer.sent.clear()

    @property
    def next_group(self) -> int | None:
        """Index of the group that the cohort in flight runs next, or None."""
        return None if self.loop.inflight is None else self.loop.inflight.cohort.next_group
