"""The flags of layered mode, declared once here; `server_flags` gives them to SGLang."""

from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal, cast

from sglang_layered.core.capability import Capability, capabilities_of
from sglang_layered.core.pacing import StepPolicy
from sglang_layered.core.policy import DEFAULT_POLICY, GroupPolicy, find_policy
from sglang_layered.errors import ConfigError
from sglang_layered.flag_fields import flag, flag_name
from sglang_layered.metrics.slo import SloLimits

PREFILL_MODES = ("chunked", "layered")
EXECUTIONS = ("fused", "sequential", "concurrent", "auto")
GROUP_ATTENTIONS = ("auto", "backends", "pair", "pod")
INVARIANT_CHECKS = ("basic", "full", "strict")
LAYERED_FLAGS = "layered_"  # how the fields of flags begin that act in layered mode only


@dataclass(frozen=True, slots=True)
class LayeredConfig:
    """Settings of one server; field names are the flags' names with underscores."""

    prefill_mode: str = flag(
        "chunked",
        "How prompts are scheduled: 'chunked' cuts them along the tokens (stock SGLang), 'layered' along the"
        " layers, so that running requests decode in every step and a prompt loads each expert once.",
        choices=PREFILL_MODES,
    )
    layered_group_tokens: int = flag(
        512,
        "Layered mode: one layer group per this many prompt tokens of a cohort, at most one group a layer.",
        least=(1, "1 or more tokens"),
    )
    layered_num_groups: int | None = flag(
        None,
        "Layered mode: a fixed number of layer groups for every cohort; overrides the policy.",
        least=(1, "1 or more groups"),
    )
    layered_max_parked: int = flag(
        0,
        "Layered mode: so many cohorts may wait at a group's edge while one of short prompts runs first.",
        least=(0, "1 or more cohorts, or 0"),
    )
    layered_short_tokens: int | None = flag(
        None,
        "Layered mode with --layered-max-parked: what a short prompt has at most to compute. Absent:"
        " --layered-group-tokens, so that it takes one step.",
        least=(1, "1 or more tokens"),
    )
    layered_policy: str = flag(
        DEFAULT_POLICY,
        "Layered mode: what chooses the layer groups: 'token-target', 'balanced' (as many, cut by cost),"
        " 'auto' (anew in every step, as many layers as --slo-tbt-ms allows, or as the paper's rule where it"
        " is not given), 'flow-prefill', 'fair-batching', 'near-late' or 'staggered' (as 'auto', with a"
        " paper's mechanism beside), the name of an installed entry point of group"
        " sglang_layered.policies, or module:Class.",
    )
    layered_calibration_file: str | None = flag(
        None,
        "Layered mode with a policy that learns, as --layered-policy auto: where what it learned is kept from"
        " one start of the server to the next; made when it is not there.",
        unused="refuse",
    )
    layered_execution: str = flag(
        "fused",
        "Layered mode: how prompt and decode rows of a step run. 'fused': together in the group's layers,"
        " whose experts are read once; 'sequential': SGLang's own decode step, then the group for the prompt;"
        " 'concurrent': these two on two CUDA streams; 'auto': whatever was fastest for steps of that size.",
        choices=EXECUTIONS,
    )
    layered_prompt_sms: int | None = flag(
        None,
        "Layered mode: the most SMs that the prompt's stream may use when steps run concurrently.",
        least=(1, "1 or more SMs"),
    )
    layered_group_attention: str = flag(
        "auto",
        "Layered mode: attention where prompt and decode rows share a layer: 'backends' runs SGLang's"
        " attention backend twice, 'pair' FlashInfer's paged prefill and decode with one plan a step, 'pod'"
        " its POD kernels in one launch (both need --attention-backend flashinfer); 'auto' is 'backends'.",
        choices=GROUP_ATTENTIONS,
    )
    layered_check_invariants: str = flag(
        "basic",
        "Layered mode: 'basic' compares ledger and cohort in every step, 'full' also walks the KV pool and"
        " the prefix cache (slow). When a check fails the cohort starts again and the server goes on in"
        " chunked mode; 'strict' checks as 'full' and stops the server instead.",
        choices=INVARIANT_CHECKS,
    )
    layered_listeners: list[str] | None = flag(  # noqa: RUF009
        None,
        "Layered mode: who hears step events: jsonl=PATH, perfetto=PATH, the name of an installed entry point"
        " of group sglang_layered.listeners, or module:Class, each with =ARGUMENT where it takes one.",
        nargs="+",
        unused="refuse",
    )
    layered_graph_granularity: int | None = flag(
        None,
        "Layered mode, where SGLang uses decode CUDA graphs: layers in the shortest graphs of a layered"
        " step's decode rows. 1 covers any layer group by graphs; more means fewer graphs, and layers between"
        " a group and the next multiple run without; 0 captures none. Absent: as few layers as 400 graphs"
        " allow.",
        least=(0, "1 or more layers a graph, or 0 for no graphs"),
    )
    layered_graph_group_rows: list[int] | None = flag(  # noqa: RUF009
        None,
        "Layered mode, where SGLang uses decode CUDA graphs: numbers of rows, prompt and decode, that graphs"
        " of every layer are captured for. A step whose group has no more rows than one of them and more than"
        " half runs its layers by graphs that break at attention. Absent: none, they run without.",
        nargs="+",
    )
    enable_expert_traffic_metrics: bool = flag(
        False,
        "Count the experts that every step activates, and their bytes, in any prefill mode: metrics with"
        " --enable-metrics, totals in /server_info, a request's share in its meta_info when it asks.",
    )
    enable_energy_metrics: bool = flag(
        False,
        "Measure the energy of the GPUs (NVML) and of the CPU packages (RAPL), in any prefill mode: metrics"
        " with --enable-metrics, totals in /server_info, a request's estimate in its meta_info when asked.",
    )
    slo_ttft_ms: float | None = flag(
        None,
        "Limit on the time to first token that requests are counted against, in any prefill mode; needs"
        " --enable-metrics. With a policy that paces steps, as --layered-policy auto, prompts that wait are"
        " ordered by it.",
    )
    slo_tbt_ms: float | None = flag(
        None,
        "Limit on the time between two tokens that requests are counted against, every gap of a request, in"
        " any prefill mode; needs --enable-metrics. A policy that keeps it, as --layered-policy auto, makes"
        " steps that do.",
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            choices, least, value = item.metadata["choices"], item.metadata["least"], getattr(self, item.name)
            if choices and value not in choices:
                raise ConfigError(f"{flag_name(item.name)} {value}: choose one of {', '.join(choices)}")
            if least is not None and value is not None and value < least[0]:
                raise ConfigError(f"{flag_name(item.name)} {value}: give {least[1]}")
        rows = self.layered_graph_group_rows or ()
        if any(number < 1 for number in rows) or len(set(rows)) < len(rows):
            raise ConfigError(
                f"--layered-graph-group-rows {' '.join(map(str, rows))}: give different numbers of 1 or more"
            )
        for name in ("slo_ttft_ms", "slo_tbt_ms"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < inf:
                raise ConfigError(f"{flag_name(name)} {limit:g}: give a number of milliseconds above 0")
        if self.layered_prompt_sms is not None and self.layered_execution not in ("concurrent", "auto"):
            raise ConfigError(
                f"--layered-prompt-sms {self.layered_prompt_sms}: it needs --layered-execution concurrent or"
                f" auto, not {self.layered_execution}"
            )

    @property
    def is_layered(self) -> bool:
        """True when layered prefill is asked for."""
        return self.prefill_mode == "layered"

    @property
    def slo_limits(self) -> SloLimits:
        """The limits that requests are counted against."""
        ttft, tbt = (None if ms is None else ms / 1e3 for ms in (self.slo_ttft_ms, self.slo_tbt_ms))
        return SloLimits(ttft, tbt)

    @property
    def has_slo(self) -> bool:
        """True when a limit is set."""
        return self.slo_ttft_ms is not None or self.slo_tbt_ms is not None

    @property
    def observes(self) -> bool:
        """True when results are looked at in any mode."""
        return self.enable_expert_traffic_metrics or self.enable_energy_metrics or self.has_slo

    @property
    def group_attention(self) -> str:
        """The group attention that `auto` stands for, or the one asked for."""
        return "backends" if self.layered_group_attention == "auto" else self.layered_group_attention

    @property
    def short_tokens(self) -> int:
        """Most tokens to compute of a prompt that overtakes."""
        return self.layered_short_tokens or self.layered_group_tokens

    @property
    def may_fuse(self) -> bool:
        """True when some steps may run decode rows apart from SGLang's own decode step."""
        return self.layered_execution in ("fused", "auto")

    @classmethod
    def from_server_args(cls, server_args: Any) -> "LayeredConfig":
        """Read the flags back from SGLang's ServerArgs; a field it lacks keeps its default."""
        given: dict[str, Any] = {
            item.name: getattr(server_args, item.name, item.default) for item in fields(cls)
        }
        return cls(**given)

    def make_policy(self) -> GroupPolicy:
        """The policy these flags name; it knows the limit, if it keeps one.

        Raises:
            ConfigError: the name is unknown, cannot be imported, or is no policy.
        """
        policy = find_policy(
            self.layered_policy, group_tokens=self.layered_group_tokens, num_groups=self.layered_num_groups
        )
        self.hand_limit(policy)
        return policy

    def hand_limit(self, policy: GroupPolicy) -> None:
        """Tell a policy that keeps a limit between tokens which one.

        Raises:
            ConfigError: the policy raised.
        """
        if Capability.KEEPS_TBT_LIMIT not in capabilities_of(policy):
            return
        limit_s = None if self.slo_tbt_ms is None else self.slo_tbt_ms / 1e3
        try:
            cast("StepPolicy", policy).keep_tbt_limit(limit_s)
        except Exception as error:
            raise ConfigError(
                f"--slo-tbt-ms {self.slo_tbt_ms}: --layered-policy {self.layered_policy} raised {error!r}"
            ) from error

    def policy_can(self, *capabilities: Capability) -> bool:
        """True when layered mode is asked for and the policy that the flags name has one of these.

        An operator may fix the number of groups and let go of it again, so --layered-num-groups changes
        nothing here.

        Raises:
            ConfigError: as `make_policy`.
        """
        if not self.is_layered:
            return False
        named = replace(self, layered_num_groups=None).make_policy()
        return not capabilities_of(named).isdisjoint(capabilities)

    def text_of(self, policy: GroupPolicy) -> str:
        """What logs and traces call a policy that these flags made: its own text if its class has one."""
        kind = type(policy)
        has_text = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
        return str(policy) if has_text else self.layered_policy

    def check_layered_flags(self) -> None:
        """Refuse a policy that cannot be made, and flags of layered mode that could have no effect.

        Raises:
            ConfigError: with the flag, the reason and the remedy.
        """
        self.make_policy()
        if self.layered_calibration_file is not None and not self.policy_can(Capability.LEARNS):
            raise ConfigError(
                f"--layered-calibration-file {self.layered_calibration_file}: --layered-policy"
                f" {self.layered_policy} learns no step times; use one that does, as auto, or leave the file"
                " out"
            )
        if self.policy_can(Capability.PREEMPTS_COHORTS) and not self.layered_max_parked:
            raise ConfigError(
                f"--layered-policy {self.layered_policy}: it says who goes before a cohort in flight"
                " (PREEMPTS_COHORTS), and nobody does without --layered-max-parked; give 1 there"
            )
        if self.layered_short_tokens is not None and not self.layered_max_parked:
            raise ConfigError(
                f"--layered-short-tokens {self.layered_short_tokens}: no prompt goes before another without"
                " --layered-max-parked; give 1 there, or leave it out"
            )
        for name in ("layered_graph_granularity", "layered_graph_group_rows"):
            if not self.may_fuse and getattr(self, name) is not None:
                raise ConfigError(
                    f"{flag_name(name)}: with --layered-execution {self.layered_execution} decode rows run in"
                    " SGLang's own graphs, apart from the prompt's; leave it out"
                )

    def unused_flags(self, unused: Literal["warn", "refuse"]) -> tuple[str, ...]:
        """Flags of layered mode that were given without it and are dealt with in that way."""
        if self.is_layered:
            return ()
        return tuple(
            flag_name(item.name)
            for item in fields(self)
            if item.name.startswith(LAYERED_FLAGS)
            and item.metadata["unused"] == unused
            and getattr(self, item.name) != item.default
        )

    def check_depth(self, num_layers: int) -> None:
        """Refuse a group count or layers a graph that the model has too few layers for."""
        for name in ("layered_num_groups", "layered_graph_granularity"):
            value = getattr(self, name)
            if value is not None and value > num_layers:
                remedy = f"the model has {num_layers} layers; give {num_layers} or fewer"
                raise ConfigError(f"{flag_name(name)} {value}: {remedy}")
