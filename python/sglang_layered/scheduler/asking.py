"""Asks a policy the four questions of `core/questions.py`, and does what it says as far as the bounds allow.

Every rank asks for itself, with rank 0's clock, so all hear the same answers.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from sglang_layered.config import LayeredConfig
from sglang_layered.core import bounds
from sglang_layered.core.capability import QUESTIONS, Capability, capabilities_of
from sglang_layered.core.pacing import StepPolicy
from sglang_layered.core.questions import NOBODY, Flying, Running, SloClass, Snapshot
from sglang_layered.errors import ConfigError
from sglang_layered.scheduler.base_loop import BaseLoop
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.queue_columns import QueueColumns
from sglang_layered.scheduler.rank_clock import LastTokenTimes
from sglang_layered.scheduler.results import Outcome
from sglang_layered.scheduler.running_columns import RunningColumns
from sglang_layered.scheduler.stream import Answered
from sglang_layered.upstream.overtake import has_place, waiting
from sglang_layered.upstream.releases import arguments, serving

NAP_S = 1e-3  # with nothing to run and prompts held; then the scheduler looks for requests again
MOST_ENDED = 1024  # noted before it is looked who of them is still there


class Asking:
    """The questions that the policy in force can answer."""

    def __init__(
        self,
        loop: BaseLoop,
        policy: StepPolicy,
        times: LastTokenTimes,
        failed: Callable[[Exception], None],
    ) -> None:
        self.now_s = 0.0  # rank 0's clock at the start of this step
        self.held_s = 0.0  # that prompts are held from now on
        # Of the policy: that it says who may be admitted, so nobody else sorts the queue; and who overtakes.
        can = capabilities_of(policy)
        self.orders, self._holds = Capability.ORDERS_QUEUE in can, Capability.HOLDS_PROMPTS in can
        self.preempts = Capability.PREEMPTS_COHORTS in can
        self._policy, self._failed, self._loop = policy, failed, loop
        self._scheduler, self._admission = loop.scheduler, loop.controls.admission
        low_first = arguments.resolved(self._scheduler.server_args).schedule_low_priority_values_first
        self._priority_sign = -1 if low_first else 1
        num_slots = self._scheduler.req_to_token_pool.req_to_token.shape[0]
        self._columns = RunningColumns(num_slots, self._facts, times)
        self._queue = QueueColumns(self._scheduler, partial(self._facts, may_refuse=True))
        # Of those that SGLang may still have among the running ones.
        self._ended: set[Any] = set(filter(_END, self._scheduler.running_batch.reqs))
        self._chunked: Any = None  # the prompt between two chunks when SGLang was shown the queue
        self._held_since_s: float | None = None
        self._told: dict[str, tuple[str, ...]] = {}
        self.use(loop.controls.config)

    @classmethod
    def of(
        cls,
        loop: BaseLoop,
        policy: StepPolicy | None,
        times: LastTokenTimes,
        failed: Callable[[Exception], None],
    ) -> "Asking | None":
        """None for a policy that answers none of them: nothing is computed for it."""
        if policy is None or not capabilities_of(policy) & QUESTIONS.keys():
            return None
        return cls(loop, policy, times, failed)

    def use(self, config: LayeredConfig) -> None:
        """The server's limits; an operator may change one."""
        limits_ms = (config.slo_ttft_ms, config.slo_tbt_ms)
        self._limits = SloClass(*(inf if limit_ms is None else limit_ms / 1e3 for limit_ms in limits_ms))
        self._columns.forget()
        self._queue.forget()

    def shown(self) -> AbstractContextManager[None]:
        """Inside, SGLang sees the prompts that may be admitted now, in the policy's order."""
        scheduler, self.held_s = self._scheduler, 0.0
        self._chunked = scheduler.chunked_req
        if not scheduler.waiting_queue:
            self._held_since_s = None
        if not (scheduler.waiting_queue and (self.orders or self._holds)):
            return nullcontext()
        if not has_place(scheduler):
            return nullcontext()  # a full server asks nobody whom it would admit
        serving.end_late_ones(scheduler)  # also of those that SGLang will not see
        try:
            admissible = self._admissible()
            return nullcontext() if admissible is None else waiting(scheduler, admissible)
        except Exception as error:
            self._failed(error)
            return nullcontext()

    def admitted(self, batch: ScheduleBatch) -> None:
        """SGLang has taken these from the queue, whatever the way."""
        if batch.reqs == [self._chunked]:
            return  # a prompt's next chunk
        self._held_since_s = None
        if self.orders or self._holds or self.preempts:
            self._queue.admitted(batch.reqs, self._looked_at())

    def processed(self, outcomes: Sequence[Outcome]) -> None:
        """SGLang has processed these results, so it costs little now to see whether they ended somebody."""
        for outcome in outcomes:
            self._ended.update(filter(_END, outcome.batch_at_launch.reqs))
        if len(self._ended) > MOST_ENDED:
            running, last = self._scheduler.running_batch, self._scheduler.last_batch
            self._ended.intersection_update([*running.reqs, *(() if last is None else last.reqs)])

    def rest(self) -> None:
        """Nothing is to run: where prompts are held, leave the core to others for a moment."""
        if self.held_s > 0:
            time.sleep(min(self.held_s, NAP_S))

    def overtaking(self, flying: Sequence[InFlightCohort]) -> list[Any]:
        """Prompts that go before the cohort that runs."""
        try:
            reqs = self._queue.without_images(self._looked_at())
            if not reqs:
                return []
            view = self._view(reqs, flying)
            chosen = bounds.overtaking(self._policy.preempt(view), view.waiting, view.max_tokens)
        except Exception as error:
            self._failed(error)
            return []
        found = self._queue.still_fitting([reqs[index] for index in chosen], view.max_tokens)
        if found:
            self._tell("preempt", found)
        return found

    def decoding(self, batch: ScheduleBatch) -> list[int] | None:
        """Indices of the requests that decode beside the cohort in flight; None: all. Aborted ones do."""
        columns = self._columns
        columns.begin(self._scheduler.forward_ct)
        try:
            running = columns.of(batch.reqs, batch.req_pool_indices_cpu, _kv_tokens(batch), self.now_s)
            flying = tuple(map(self._flying, self._loop.cohorts.inflight))
            view = Snapshot((), running, flying, len(self._scheduler.waiting_queue), self._most_tokens)
            keep = bounds.decoding(self._policy.decode_rows(view), running)
        except Exception as error:
            self._failed(error)
            return None
        if keep is None:
            columns.decode(None)
            return None
        if any(map(_ABORTED, batch.reqs)):
            aborted = {index for index, req in enumerate(batch.reqs) if _ABORTED(req)}
            keep = sorted(aborted.union(keep))
        columns.decode(keep)
        if self._loop.is_heard:
            decode = set(keep)
            self._tell("decode_rows", [req for index, req in enumerate(batch.reqs) if index not in decode])
        return keep

    @property
    def _most_tokens(self) -> int:
        return int(self._admission.most_tokens or self._scheduler.max_prefill_tokens)

    def _admissible(self) -> list[Any] | None:
        """Who may be admitted, in this order; None: the queue as it is."""
        scheduler, reqs = self._scheduler, self._looked_at()
        view = self._view(reqs, ())
        shown, chosen = None, [*range(len(reqs))]
        if self.orders:
            chosen = bounds.admitted_in(self._policy.order(view), view.waiting)
            shown = [reqs[index] for index in chosen]
            self._tell("order", shown)
        if self._holds and chosen and scheduler.chunked_req is None:
            since_s = self.now_s if self._held_since_s is None else self._held_since_s
            self.held_s = bounds.held_for(self._policy.hold(view), self.now_s - since_s)
            if self.held_s > 0:
                self._held_since_s = since_s
                self._tell("hold", scheduler.waiting_queue if shown is None else shown, self.held_s)
                return []
        self._queue.leave_out(reqs, chosen)
        return shown

    def _looked_at(self) -> list[Any]:
        found: list[Any] = self._scheduler.waiting_queue[: bounds.MOST_LOOKED_AT]
        return found

    def _view(self, reqs: Sequence[Any], flying: Sequence[InFlightCohort]) -> Snapshot:
        return Snapshot(
            self._queue.of(reqs, self.now_s),
            self._running(bool(flying)),
            tuple(map(self._flying, flying)),
            len(self._scheduler.waiting_queue),
            self._most_tokens,
        )

    def _running(self, is_in_flight: bool) -> Running:
        """Of the running batch, and of the latest prompts, which decode from the next step on."""
        scheduler, last = self._scheduler, self._scheduler.last_batch
        batches = [scheduler.running_batch]
        if not is_in_flight and last is not batches[0] and last is not None and last.forward_mode.is_extend():
            batches.append(last)
        batches = [batch for batch in batches if batch.reqs]
        if not batches:
            return NOBODY
        reqs, slots, kv_tokens = batches[0].reqs, batches[0].req_pool_indices_cpu, _kv_tokens(batches[0])
        if len(batches) > 1:
            reqs = [*reqs, *last.reqs]
            slots = torch.cat([slots, last.req_pool_indices_cpu])
            kv_tokens = torch.cat([kv_tokens, _kv_tokens(last)])
        chunked = scheduler.chunked_req
        ended = self._ended and self._ended.intersection(reqs)
        if not is_in_flight:  # else the latest prompts are still to come among them
            self._ended = ended
        if chunked is not None or ended:
            keep = [at for at, req in enumerate(reqs) if req not in ended and req is not chunked]
            reqs, slots, kv_tokens = [reqs[index] for index in keep], slots[keep], kv_tokens[keep]
        return self._columns.of(reqs, slots, kv_tokens, self.now_s)

    def _flying(self, item: InFlightCohort) -> Flying:
        known, num_reqs = item.urgent, len(item.reqs)
        if known is None or known[0] is not self._limits or known[1] != num_reqs:
            known = item.urgent = self._limits, num_reqs, *self._urgent(item.reqs)
        _, _, arrived_s, limits, priority = known
        cohort, waited_s = item.cohort, self.now_s - arrived_s
        where = (item.num_prompt_tokens, cohort.group.start, cohort.plan.num_layers, waited_s)
        return Flying(*where, limits, priority, item.num_overtaken)

    def _urgent(self, reqs: Sequence[Any]) -> tuple[float, SloClass, int]:
        """Of several the most urgent values."""
        if len(reqs) == 1:
            return self._facts(reqs[0])
        arrivals_s, all_limits, priorities = zip(*map(self._facts, reqs), strict=True)
        limits = SloClass(*map(min, zip(*set(all_limits), strict=True)))
        return min(arrivals_s), limits, max(priorities)

    def _facts(self, req: Any, may_refuse: bool = False) -> tuple[float, SloClass, int]:
        """When it came, its limits, its priority. Limits without a meaning end a request that waits."""
        try:
            arrived_s = req.layered_arrived_s
        except AttributeError:
            arrived_s = req.layered_arrived_s = self.now_s
        limits, params = self._limits, req.sampling_params.custom_params
        if params:
            try:
                limits = limits.of(params)
            except ConfigError as error:
                if may_refuse and req.to_finish is None and not req.output_ids:
                    req.set_finish_with_abort(str(error))
        return arrived_s, limits, (req.priority or 0) * self._priority_sign

    def _tell(self, question: str, reqs: Sequence[Any], seconds: float = 0.0) -> None:
        """Trace an answer, where it is another one than before."""
        if not self._loop.is_heard:
            return
        names = tuple(req.rid for req in reqs)
        if self._told.get(question) != names:
            self._told[question] = names
            self._loop.stream.emit(Answered(question, names, seconds))


_END, _ABORTED = attrgetter("finished_reason"), attrgetter("to_finish")


def _kv_tokens(batch: ScheduleBatch) -> torch.Tensor:
    """Of each request; with drafts and overlap SGLang leaves them out for backends that do not ask."""
    lens = batch.seq_lens_cpu
    return torch.tensor([req.seqlen - 1 for req in batch.reqs]) if lens is None else lens
