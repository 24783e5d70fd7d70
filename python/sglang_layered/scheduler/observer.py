"""Looks at every batch of results, in any prefill mode: expert traffic, energy, limits, charges.

The seams of `process_batch_result` call it before and after SGLang's own processing. In chunked mode a step
is one batch; the layered loop says itself what its steps held, before their results are processed.

A request asks for its charges with `"custom_params": {"layered_report": true}` in its sampling parameters.
SGLang's `customized_info` holds one value a key for every output token: what was charged since the last; of
tokens that come together the first has it, the others 0.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.utils import is_health_check_generate_req

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import KernelError
from sglang_layered.metrics.energy_feed import EnergyFeed
from sglang_layered.metrics.instruments import Instruments
from sglang_layered.metrics.slo import RequestTiming, SloLimits
from sglang_layered.metrics.traffic import TrafficFeed
from sglang_layered.scheduler.metrics import instruments_of, is_first, show_mode
from sglang_layered.scheduler.stream import Handlers, ResultsDue
from sglang_layered.upstream.releases import serving
from sglang_layered.upstream.room import rows_per_request

logger = logging.getLogger(__name__)

ASK = "layered_report"
EXPERT_BYTES, ENERGY_J = "expert_bytes", "energy_estimate_j"

Weighted = Sequence[tuple[Any, float]]


def observe(scheduler: Any) -> None:
    """Give the scheduler its instruments, and an observer when a flag asks for one."""
    config = LayeredConfig.from_server_args(scheduler.server_args)
    scheduler.layered_instruments = instruments_of(scheduler, config)
    show_mode(scheduler.layered_instruments, config)
    if config.observes and serving.ranks_of(scheduler).attn_tp_rank == 0:
        scheduler.layered_observer = Observer(scheduler, config)


class Observer:
    """One scheduler's; a rank that writes no metrics has none."""

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self._instruments: Instruments = scheduler.layered_instruments
        self._limits = config.slo_limits if config.has_slo and is_first(scheduler) else None
        self._watch = _watch(scheduler, config)
        self._traffic = None if self._watch is None else TrafficFeed(self._watch.shape, self._instruments)
        self._energy = (
            EnergyFeed.start(scheduler, self._instruments) if config.enable_energy_metrics else None
        )
        has_meter = self._energy is not None and self._energy.has_meter
        is_charged = {EXPERT_BYTES: self._watch is not None, ENERGY_J: has_meter}
        keys = [key for key, is_there in is_charged.items() if is_there]
        self._charges = Charges(keys, rows_per_request(scheduler))
        self._charged = 0  # the newest step that was
        self._start_limits()

    def handlers(self) -> Handlers:
        """What it hears of the layered loop: nothing where it only keeps limits."""
        is_charging = self._traffic is not None or self._energy is not None
        return {ResultsDue: self._results_due} if is_charging else {}

    def _results_due(self, event: ResultsDue) -> None:
        """A layered step holds more than the batches whose results SGLang processes."""
        step, cohort = event.step, event.step.cohort
        if cohort is not None:
            part = cohort.group.num_layers / cohort.plan.num_layers
            prompts = [(req, num_rows * part) for req, num_rows in step.prompt]
            self.step(step.number, prompts, [(req, 1.0) for req in step.decodes], step.timer.start_s)

    def step(self, number: int, prompts: Weighted, decodes: Weighted, launch_s: float) -> None:
        """A step's results are about to be processed; weights are its rows, times the part of the layers.

        Args:
            number: the step's, as in SGLang's `forward_ct`.
            prompts: requests whose prompt it computed, a part of it or all, with their weights.
            decodes: requests that it decoded, with their weights.
            launch_s: `time.monotonic()` at its launch.
        """
        if number <= self._charged:
            return
        self._charged = number
        if self._traffic is not None:
            self._charge_experts(number, prompts, decodes)
        if self._energy is not None:
            joules = self._energy.step_j(launch_s, sum(rows for _, rows in prompts))
            if self._energy.has_meter:
                self._charges.add(ENERGY_J, joules, [*prompts, *decodes])

    def before_results(self, batch: Any) -> None:
        """SGLang is about to process these results."""
        if not batch.reqs:
            return
        if self._traffic is None and self._energy is None:
            return
        if batch.forward_iter is not None and batch.forward_iter > self._charged:
            self.step(batch.forward_iter, *_of_chunked_mode(batch), batch.launch_ts)
        self._charges.report(batch.reqs)
        if self._energy is not None:
            self._energy.output_tokens(sum(map(gets_token, batch.reqs)))

    def after_results(self, batch: Any) -> None:
        """SGLang has processed them: the tokens are handed on."""
        now = time.perf_counter()
        if self._limits is not None:
            for req in batch.reqs:
                self._heard(req, now, self._limits)

    def state(self) -> dict[str, Any]:
        """What `/server_info` shows."""
        state: dict[str, Any] = {}
        if self._traffic is not None:
            state["expert_traffic"] = self._traffic.state()
        if self._energy is not None:
            state["energy"] = self._energy.state()
        return state

    def _charge_experts(self, number: int, prompts: Weighted, decodes: Weighted) -> None:
        if self._watch is None or self._traffic is None:
            return
        try:
            counts = self._watch.take(number)
        except KernelError as error:
            logger.error("Expert traffic is no longer counted: %s", error)
            self._traffic.broken = str(error)
            self._watch = None
            return
        somebody_asked = any(asked(req) for req, _ in (*prompts, *decodes))
        for forward in counts:
            self._traffic.add(forward)
            if not somebody_asked:
                continue
            shares = self._traffic.shares(forward)
            self._charges.add(EXPERT_BYTES, shares.prompt_bytes, prompts)
            self._charges.add(EXPERT_BYTES, shares.decode_bytes, decodes)

    def _heard(self, req: Any, now: float, limits: SloLimits) -> None:
        timing = getattr(req, "layered_timing", None)
        if timing is None:
            if is_health_check_generate_req(req):
                return
            timing = req.layered_timing = RequestTiming()
        if timing.is_counted:
            return
        timing.heard(len(req.output_ids), now, req.time_stats.scheduler_recv_time)
        if req.finished() and not isinstance(req.finished_reason, FINISH_ABORT):
            timing.is_counted = True
            for slo, met in limits.verdicts(timing).items():
                self._instruments.add("slo_requests_total", slo=slo, met=str(met).lower())

    def _start_limits(self) -> None:
        if self._limits is None:
            return
        for slo, limit in (("ttft", self._limits.ttft_s), ("tbt", self._limits.tbt_s)):
            if limit is not None:
                self._instruments.set("slo_limit_seconds", limit, slo=slo)
        for slo in self._limits.verdicts(RequestTiming()):
            for met in ("true", "false"):
                self._instruments.add("slo_requests_total", 0, slo=slo, met=met)


def _watch(scheduler: Any, config: LayeredConfig) -> Any:
    """The watch over the scheduler's model, counting; None without MoE layers on this rank."""
    watch = getattr(scheduler.tp_worker.model_runner, "layered_expert_watch", None)
    if not config.enable_expert_traffic_metrics or watch is None:
        return None
    watch.start(lambda: scheduler.forward_ct, lambda: len(scheduler.cur_batch_for_debug.decoding_reqs or ()))
    return watch


def _of_chunked_mode(batch: Any) -> tuple[Weighted, Weighted]:
    """Prompts and decodes of one batch; in a mixed chunk the last requests decode."""
    if not batch.forward_mode.is_extend():
        return (), [(req, 1.0) for req in batch.reqs]
    num_prompts = len(batch.reqs) - len(batch.decoding_reqs or ())
    rows = zip(batch.reqs, batch.extend_lens, strict=True)
    shares = [(req, float(num_rows)) for req, num_rows in rows]
    return shares[:num_prompts], shares[num_prompts:]


class Charges:
    """Amounts that are charged but not reported yet, kept on the requests; keys are those in `meta_info`."""

    def __init__(self, keys: Sequence[str], most_tokens: int = 1) -> None:
        """A request gets `most_tokens` of a step, or fewer."""
        self._keys = tuple(keys)
        self._others = [0] * (most_tokens - 1)

    def add(self, key: str, amount: float, shares: Sequence[tuple[Any, float]]) -> None:
        """Part `amount` among requests by their weights; only those that asked are told of it."""
        total = sum(weight for _, weight in shares)
        for req, weight in shares:
            if weight and asked(req):
                due = getattr(req, "layered_due", None)
                if due is None:
                    due = req.layered_due = dict.fromkeys(self._keys, 0.0)
                due[key] += amount * weight / total

    def report(self, reqs: Iterable[Any]) -> None:
        """Hand over what is due to each of these that gets a token from the results at hand.

        SGLang hands on the values at the places of the tokens that it hands on. How many tokens a verified
        step gives is not known yet: what is written behind them is written anew with the next ones.
        """
        for req in reqs:
            if asked(req) and gets_token(req):
                due = getattr(req, "layered_due", None) or dict.fromkeys(self._keys, 0.0)
                req.layered_due = None
                if req.customized_info is None:
                    req.customized_info = {}
                for key, amount in due.items():
                    charged = round(amount) if key == EXPERT_BYTES else round(amount, 6)
                    values = req.customized_info.setdefault(key, [])
                    values[len(req.output_ids) :] = [charged, *self._others]


def asked(req: Any) -> bool:
    """True when the request wants its charges reported."""
    params = req.sampling_params.custom_params
    return isinstance(params, dict) and bool(params.get(ASK))


def gets_token(req: Any) -> bool:
    """True when SGLang will give this request a token from results that it has not processed yet.

    Upstream: srt/managers/scheduler_components/batch_result_processor.py; a middle chunk gives none.
    """
    return not (req.finished() or req.is_retracted) and req.inflight_middle_chunks <= 0
