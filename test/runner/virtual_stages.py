"""Pipeline stages of an exact model in one process, and SGLang's `event_loop_pp` a tick at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.utils import GenerationBatchResult
from torch import nn

from exact_model import ExactModel, ExactStack, RowLog
from release_differences import as_received, as_stage, settings_like
from sglang_layered.core.events import CohortDropped, Event, RequestsLeft
from sglang_layered.core.stages import PipelineStages
from sglang_layered.runner.layered_runner import StageRunner
from sglang_layered.scheduler.tick import PipelineTick
from sglang_layered.upstream.pipeline import StageLauncher


class StageLog(RowLog):
    """Cohorts on several stages at once; without overtaking one at a time between the edges of a stage."""

    __slots__ = ("cuts",)

    def on_event(self, event: Event) -> None:
        """A dropped cohort's requests start again, maybe in the same tick."""
        if isinstance(event, CohortDropped | RequestsLeft):
            for rid in event.request_ids:
                self.forget(rid)

    def meet(self, cohort: Any, layer: int) -> None:
        members = {rows.rid for rows in cohort}
        start = max(cut for cut in self.cuts if cut <= layer)
        end = min(cut for cut in self.cuts if cut > layer)
        if cohort[0].is_prompt and not self.several:
            inside = {rid for rid, (rows, due) in self.open.items() if rows.is_prompt and start < due < end}
            assert inside <= members, f"{inside - members} are in the stage where {members} run layer {layer}"
        for rows in cohort:
            self._meet_one(rows, layer)


class ExactStage(ExactModel):
    """The layers [start, end) of an exact model, with its log and its KV cache."""

    def __init__(self, whole: ExactModel, start: int, end: int) -> None:
        nn.Module.__init__(self)
        self.pp_group = SimpleNamespace(is_first_rank=start == 0, is_last_rank=end == whole.num_layers)
        self.model = ExactStack(0, self.pp_group)
        self.model.layers = whole.model.layers
        self.model.start_layer, self.model.end_layer = start, end
        self.num_layers = whole.num_layers
        for shared in ("log", "tags", "values", "weights", "tokens", "histories"):
            setattr(self, shared, getattr(whole, shared))
        vars(self).update(settings_like(whole))


class RankView:
    """The scheduler as a stage's launcher sees it: all is the real one's but its group."""

    def __init__(self, scheduler: Any, rank: int, num_ranks: int) -> None:
        ours = {
            "_scheduler": scheduler,
            "pp_group": SimpleNamespace(is_last_rank=rank == num_ranks - 1),
        }
        self.__dict__.update(ours)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._scheduler, name, value)


class VirtualStages:
    """Stands where the launcher of this rank stands, and launches a tick on every rank in turn."""

    def __init__(self, scheduler: Any, whole: ExactModel, stages: PipelineStages) -> None:
        self._runner = scheduler.tp_worker.model_runner
        self._models, self._launchers = [], []
        for rank, layers in enumerate(stages.layers):
            self._models.append(ExactStage(whole, layers.start, layers.end))
            with self._model(rank), as_stage(scheduler, rank, len(stages.layers)):
                view = RankView(scheduler, rank, len(stages.layers))
                self._launchers.append(StageLauncher(view, StageRunner(self._runner)))

    def launch(
        self, mb_id: int, tick: PipelineTick, received: Any
    ) -> tuple[GenerationBatchResult, dict[str, Any]]:
        assert received is None
        done = tick.completed
        tokens = None if done is None else done.batch.input_ids
        for rank, launcher in enumerate(self._launchers):
            if tokens is not None:  # each rank forgets them on its own batch
                done.batch.input_ids = tokens
            with self._model(rank):
                result, outputs = launcher.launch(mb_id, tick, received)
            received = result.pp_hidden_states_proxy_tensors
        assert not received.tensors, f"the last stage sends {list(received.tensors)} on"
        return result, outputs

    def results(self, *args: Any) -> Any:
        return self._launchers[-1].results(*args)

    @contextmanager
    def _model(self, rank: int) -> Iterator[None]:
        whole, self._runner.model = self._runner.model, self._models[rank]
        try:
            yield
        finally:
            self._runner.model = whole


class _Stop(BaseException):
    """Ends SGLang's loop, which has no end of its own."""


class Ticks:
    """Runs SGLang's `event_loop_pp` one tick at a time.

    Between two ticks the loop stands where it has received requests and hands them to the scheduler: what a
    test does then happens where SGLang does it, in the turn of the next micro-batch.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._ring: deque[dict[str, Any]] = deque()
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._is_over = False
        scheduler.request_receiver = SimpleNamespace(recv_requests=self._stand)
        scheduler._pp_send_dict_to_next_stage = self._send
        scheduler._pp_recv_dict_from_prev_stage = lambda: as_received(self._ring.popleft())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def tick(self) -> None:
        """One micro-batch's turn, to the point where the next one receives requests."""
        assert not self._is_over, "the loop has ended"
        self._go.release()
        self._wait()

    def close(self) -> None:
        """End the loop."""
        if not self._is_over:
            self._is_over = True
            self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._stands.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _stand(self, **_: Any) -> list[Any]:
        self._stands.release()
        self._go.acquire()
        if self._is_over:
            raise _Stop
        return []

    def _send(self, tensors: dict[str, Any], *, msg_type: str, async_send: bool, **_: Any) -> list[Any]:
        assert (msg_type, async_send) == ("output", True), msg_type
        self._ring.append(tensors)
        return []

    def _run(self) -> None:
        try:
            self._scheduler.event_loop_pp()
        except _Stop:
            pass
        except BaseException as error:
            self._is_over, self._error = True, error
            self._stands.release()
