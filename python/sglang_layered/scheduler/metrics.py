"""What the layered loop writes into SGLang's registry: steps, cohorts, groups, slots, the mode in force."""

from collections.abc import Callable
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.metrics.instruments import Instruments
from sglang_layered.metrics.table import Needs
from sglang_layered.scheduler import stream
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.upstream.releases import serving


def instruments_of(scheduler: Any, config: LayeredConfig) -> Instruments:
    """The instruments of this scheduler process; none without --enable-metrics, or on a rank without."""
    reporter = scheduler.metrics_reporter
    if not getattr(reporter, "current_scheduler_metrics_enabled", False):
        return Instruments({})
    return Instruments(scheduler.metrics_collector.labels, needs_of(config), is_first(scheduler))


def needs_of(config: LayeredConfig) -> list[Needs]:
    """What these flags switch on, of what metrics need."""
    wanted: dict[Needs, bool] = {
        "any": True,
        "layered": config.is_layered,
        "experts": config.enable_expert_traffic_metrics,
        "energy": config.enable_energy_metrics,
        "slo": config.has_slo,
        "learns": config.policy_can(Capability.LEARNS),
        "paces": config.policy_can(Capability.PACES_STEPS),
    }
    return [need for need, is_wanted in wanted.items() if is_wanted]


def is_first(scheduler: Any) -> bool:
    """True in the one process of a replica that sees every request: tensor rank 0 of the first stage."""
    ranks = serving.ranks_of(scheduler)
    return bool(ranks.pp_rank == 0 and ranks.attn_tp_rank == 0)


def show_mode(instruments: Instruments, config: LayeredConfig, value: int = 1) -> None:
    """Say which mode is in force, or with 0 that it is no longer."""
    policy, execution = (config.layered_policy, config.layered_execution) if config.is_layered else ("-", "-")
    instruments.set("prefill_mode_info", value, mode=config.prefill_mode, policy=policy, execution=execution)


class LoopMetrics:
    """Of one layered loop: a handler an event, each metric a row of the table and a line in its handler."""

    def __init__(
        self, scheduler: Any, config: LayeredConfig, in_flight: Callable[[], list[InFlightCohort]]
    ) -> None:
        """`in_flight` gives the cohorts in flight, the oldest first."""
        self._instruments: Instruments = getattr(scheduler, "layered_instruments", Instruments({}))
        self._scheduler = scheduler
        self._in_flight = in_flight
        self._config = config
        self._strategy: str | None = None
        self._shown: dict[tuple[str, str], int] = {}
        self._instruments.set("layered_prefill_active", config.is_layered)
        self._show_cohorts()

    def handlers(self) -> stream.Handlers:
        """Nothing on a rank that writes no metrics."""
        if not self._instruments:
            return {}
        return {
            stream.Admitted: self._admitted,
            stream.Overtaken: self._overtaken,
            stream.StepDone: self._step_done,
            stream.Dropped: self._dropped,
            stream.Left: self._left,
            stream.SettingsChanged: self._settings_changed,
            stream.Paced: self._paced,
            stream.Predicted: self._predicted,
        }

    def _admitted(self, event: stream.Admitted) -> None:
        self._instruments.observe("layered_cohort_tokens", event.inflight.num_prompt_tokens)

    def _overtaken(self, event: stream.Overtaken) -> None:
        self._instruments.add("layered_overtaken_cohorts_total")

    def _step_done(self, event: stream.StepDone) -> None:
        timing, strategy = event.timing, event.step.strategy
        self._instruments.add("layered_steps_total", kind=timing.kind)
        self._instruments.observe("layered_step_seconds", timing.duration_s, kind=timing.kind)
        if event.step.finished is not None:
            self._instruments.observe("layered_groups_per_cohort", event.step.finished.plan.num_groups)
        if strategy is not None and strategy != self._strategy:
            if self._strategy is not None:
                self._instruments.set("layered_strategy_info", 0, strategy=self._strategy)
            self._instruments.set("layered_strategy_info", 1, strategy=strategy)
            self._strategy = strategy
        self._show_cohorts()

    def _predicted(self, event: stream.Predicted) -> None:
        ratio = event.predicted_s / event.duration_s if event.duration_s > 0 else 1.0
        self._instruments.observe("layered_step_prediction_error_ratio", abs(ratio - 1), kind=event.kind)

    def _paced(self, event: stream.Paced) -> None:
        self._instruments.observe("layered_step_budget_seconds", max(event.decision.budget_s, 0.0))
        if not event.decision.fits:
            self._instruments.add("layered_steps_over_budget_total")

    def _dropped(self, event: stream.Dropped) -> None:
        self._instruments.add("layered_dropped_cohorts_total", reason=event.reason)
        self._show_cohorts()

    def _left(self, event: stream.Left) -> None:
        self._instruments.add("layered_left_requests_total", len(event.reqs))

    def _settings_changed(self, event: stream.SettingsChanged) -> None:
        if not event.has_other_mode:
            return
        config = event.config
        show_mode(self._instruments, self._config, 0)
        show_mode(self._instruments, config)
        self._config = config
        self._instruments.set("layered_prefill_active", config.is_layered)
        self._instruments.add("layered_mode_changes_total", mode=config.prefill_mode, reason=event.reason)

    def _show_cohorts(self) -> None:
        cohorts, done, left = self._in_flight(), 0, 0
        if cohorts:
            oldest = cohorts[0].cohort
            done, left = oldest.next_group, oldest.plan.num_groups - oldest.next_group
        partial = sum(inflight.num_prompt_tokens for inflight in cohorts)
        gauges = {
            ("layered_cohorts_in_flight", ""): len(cohorts),
            ("layered_cohort_groups", "done"): done,
            ("layered_cohort_groups", "left"): left,
            ("layered_parked_bytes", ""): sum(map(parked_bytes, cohorts)),
            ("layered_kv_slots", "partial"): partial,
            ("layered_kv_slots", "filled"): self._used_slots() - partial,
        }
        for (name, state), value in gauges.items():
            if self._shown.get((name, state)) != value:  # a gauge that stays costs a write as well
                self._shown[name, state] = value
                labels = {"state": state} if state else {}
                self._instruments.set(name, value, **labels)

    def _used_slots(self) -> int:
        """Slots of running requests and of the prefix cache."""
        scheduler = self._scheduler
        return int(scheduler.max_total_num_tokens - scheduler.token_to_kv_pool_allocator.available_size())


def parked_bytes(inflight: InFlightCohort) -> int:
    """Bytes of the activations that a cohort keeps between two groups."""
    if inflight.parked is None:
        return 0
    tensors = inflight.parked.tensors.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
