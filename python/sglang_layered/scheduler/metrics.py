"""What the layered loop writes into SGLang's registry: steps, cohorts, groups, slots, the mode in force."""

from __future__ import annotations

from typing import Any, get_args

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.core.cohort import Cohort
from sglang_layered.core.events import DropReason
from sglang_layered.core.pacing import Decision
from sglang_layered.core.view import StepKind, StepTiming
from sglang_layered.metrics.instruments import Instruments, NoInstruments, PrometheusInstruments
from sglang_layered.metrics.table import Needs
from sglang_layered.scheduler.batch import InFlightCohort
from sglang_layered.scheduler.loads import count_cohorts

CHANGES = (
    ("chunked", "operator"),
    ("layered", "operator"),
    ("chunked", DropReason.BROKEN_INVARIANT),
    ("chunked", "policy failed"),
)


def instruments_of(scheduler: Any, config: LayeredConfig) -> Instruments:
    """The instruments of this scheduler process; none without --enable-metrics, or on a rank without."""
    reporter = scheduler.metrics_reporter
    if not getattr(reporter, "current_scheduler_metrics_enabled", False):
        return NoInstruments()
    return PrometheusInstruments(scheduler.metrics_collector.labels, needs_of(config), is_first(scheduler))


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
    return scheduler.ps.pp_rank == 0 and scheduler.ps.attn_tp_rank == 0


def show_mode(instruments: Instruments, config: LayeredConfig, value: int = 1) -> None:
    """Say which mode is in force, or with 0 that it is no longer."""
    policy, execution = (config.layered_policy, config.layered_execution) if config.is_layered else ("-", "-")
    instruments.set("prefill_mode_info", value, mode=config.prefill_mode, policy=policy, execution=execution)


class LoopMetrics:
    """Of one layered loop."""

    def __init__(self, scheduler: Any, config: LayeredConfig) -> None:
        self._instruments: Instruments = getattr(scheduler, "layered_instruments", NoInstruments())
        self._is_off = isinstance(self._instruments, NoInstruments)
        self._scheduler = scheduler
        self._config = config
        self._strategy: str | None = None
        self._shown: dict[tuple[str, str], int] = {}
        self._instruments.set("layered_prefill_active", config.is_layered)
        for kind in get_args(StepKind):
            self._instruments.add("layered_steps_total", 0, kind=kind)
        for reason in DropReason:
            self._instruments.add("layered_dropped_cohorts_total", 0, reason=reason)
        for mode, why in CHANGES:
            self._instruments.add("layered_mode_changes_total", 0, mode=mode, reason=why)
        self._instruments.add("layered_steps_over_budget_total", 0)
        self.in_flight([])
        count_cohorts(scheduler)

    def admitted(self, inflight: InFlightCohort) -> None:
        """A cohort was admitted."""
        self._instruments.observe("layered_cohort_tokens", inflight.num_prompt_tokens)

    def finished(self, cohort: Cohort) -> None:
        """A cohort passed its last group."""
        self._instruments.observe("layered_groups_per_cohort", cohort.plan.num_groups)

    def stepped(self, timing: StepTiming, strategy: str | None) -> None:
        """A step's results were processed."""
        if self._is_off:
            return
        self._instruments.add("layered_steps_total", kind=timing.kind)
        self._instruments.observe("layered_step_seconds", timing.duration_s, kind=timing.kind)
        if strategy is not None and strategy != self._strategy:
            if self._strategy is not None:
                self._instruments.set("layered_strategy_info", 0, strategy=self._strategy)
            self._instruments.set("layered_strategy_info", 1, strategy=strategy)
            self._strategy = strategy

    def predicted(self, kind: str, predicted_s: float, duration_s: float) -> None:
        """A step that was predicted to take so long took so long."""
        error = abs(predicted_s / duration_s - 1) if duration_s > 0 else 0.0
        self._instruments.observe("layered_step_prediction_error_ratio", error, kind=kind)

    def paced(self, decision: Decision) -> None:
        """A step policy chose the layers of a step."""
        self._instruments.observe("layered_step_budget_seconds", max(decision.budget_s, 0.0))
        if not decision.fits:
            self._instruments.add("layered_steps_over_budget_total")

    def in_flight(self, cohorts: list[InFlightCohort]) -> None:
        """These are in flight now, the oldest first."""
        if self._is_off:
            return
        done = left = partial = 0
        if cohorts:
            oldest = cohorts[0].cohort
            done, left = oldest.next_group, oldest.plan.num_groups - oldest.next_group
            partial = sum(inflight.num_prompt_tokens for inflight in cohorts)
        self._show("layered_cohorts_in_flight", len(cohorts))
        self._show("layered_cohort_groups", done, state="done")
        self._show("layered_cohort_groups", left, state="left")
        self._show("layered_parked_bytes", sum(map(parked_bytes, cohorts)))
        self._show("layered_kv_slots", partial, state="partial")
        self._show("layered_kv_slots", self._used_slots() - partial, state="filled")

    def dropped(self, reason: DropReason) -> None:
        """A cohort left before its last group."""
        self._instruments.add("layered_dropped_cohorts_total", reason=reason)

    def mode_changed(self, config: LayeredConfig, reason: str) -> None:
        """The server goes on in another mode."""
        show_mode(self._instruments, self._config, 0)
        show_mode(self._instruments, config)
        self._config = config
        self._instruments.set("layered_prefill_active", config.is_layered)
        self._instruments.add("layered_mode_changes_total", mode=config.prefill_mode, reason=reason)

    def _show(self, name: str, value: int, state: str = "") -> None:
        """Set a gauge, if it changes."""
        if self._shown.get((name, state)) != value:
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
