"""What an operator can change on a running server (`settings`), and what the next cohort may have.

A change takes effect at the next cohort. SGLang takes the tokens of a batch and the order of prompts from its
own state: `chunked_prefill_size` and the waiting queue.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, cast

from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.runtime_context import get_context

from sglang_layered.auto.deadlines import WaitingPrompt, order_by_slack
from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import ON_STEPS, QUESTIONS, Capability, capabilities_of
from sglang_layered.core.pacing import QueueView, StepPolicy
from sglang_layered.core.policy import GroupPolicy
from sglang_layered.errors import ConfigError, LayeredPrefillError
from sglang_layered.refusals import refuse_change
from sglang_layered.scheduler.stream import EventStream, SettingsChanged
from sglang_layered.settings import KEYS, refusal
from sglang_layered.upstream.releases import arguments, requests

logger = logging.getLogger(__name__)


class Controls:
    """The settings in force: the mode, the policy, and the budget of a cohort (`admission`)."""

    def __init__(self, scheduler: Any, config: LayeredConfig, num_layers: int, stream: EventStream) -> None:
        """`num_layers` is the most groups that a plan may have."""
        config.check_depth(num_layers)
        self.config = config
        self.policy: GroupPolicy = config.make_policy()
        self.admission = Admission(scheduler)
        self._server_args = arguments.resolved(scheduler.server_args)
        self._learned: tuple[LayeredConfig, GroupPolicy] | None = None  # the last with a part in every step
        self._num_layers = num_layers
        self._stream = stream

    @property
    def is_layered(self) -> bool:
        """False while prompts are scheduled as in stock."""
        return self.config.is_layered

    @property
    def step_policy(self) -> StepPolicy | None:
        """The policy in force, if it has a part in every step."""
        return self._on_steps if self.config.is_layered else None

    @property
    def policy_text(self) -> str:
        """What logs and traces call the policy in force."""
        return self.config.text_of(self.policy)

    @property
    def _on_steps(self) -> StepPolicy | None:
        return cast("StepPolicy", self.policy) if capabilities_of(self.policy) & ON_STEPS else None

    def go_on_chunked(self, reason: str) -> None:
        """Admit no more cohorts until an operator says otherwise."""
        self.put_in_force(replace(self.config, prefill_mode="chunked"), self.policy, reason)

    def handle(self, wanted: Mapping[str, float]) -> SetInternalStateReqOutput:
        """Change what the request names, all of it or, when a value is bad, nothing."""
        try:
            config, cohort_tokens = self._parse(wanted)
            self._adopt(config, "operator")
        except LayeredPrefillError as error:
            logger.error("/set_internal_state refused, nothing changed: %s", error)
            return refusal(str(error))
        if cohort_tokens is not None:
            self.admission.allow(cohort_tokens)
        logger.warning("/set_internal_state: from the next cohort on %s", dict(wanted))
        return SetInternalStateReqOutput(updated=True)

    def _parse(self, wanted: Mapping[str, float]) -> tuple[LayeredConfig, int | None]:
        unknown = sorted(wanted.keys() - set(KEYS))
        if unknown:
            raise ConfigError(
                f"{unknown} cannot be changed together with {sorted(set(KEYS) & wanted.keys())}"
            )
        numbers = {key: _whole(key, value) for key, value in wanted.items() if key != "layered_tbt_ms"}
        changes: dict[str, Any] = {}
        if "layered_tbt_ms" in wanted:
            changes["slo_tbt_ms"] = self._tbt_ms(wanted["layered_tbt_ms"])
        if "layered_prefill" in numbers:
            changes["prefill_mode"] = _one_of("layered_prefill", numbers["layered_prefill"])
        if "layered_group_tokens" in numbers:
            changes["layered_group_tokens"] = numbers["layered_group_tokens"]
        if "layered_num_groups" in numbers:
            changes["layered_num_groups"] = numbers["layered_num_groups"] or None
        if "layered_max_parked" in numbers:
            changes["layered_max_parked"] = numbers["layered_max_parked"]
        config = replace(self.config, **changes)
        config.check_depth(self._num_layers)
        if config.layered_max_parked and not self.config.layered_max_parked:
            before = replace(self.config, prefill_mode="layered")
            refuse_change(before, replace(config, prefill_mode="layered"), self._server_args)
        tokens = numbers.get("layered_cohort_tokens")
        return config, None if tokens is None else self.admission.check(tokens)

    def _tbt_ms(self, wanted: float) -> float | None:
        named = replace(self.config, prefill_mode="layered")  # also while the server is in chunked mode
        if not named.policy_can(Capability.KEEPS_TBT_LIMIT, *QUESTIONS):
            raise ConfigError(
                f"layered_tbt_ms {wanted:g}: --layered-policy {named.layered_policy} keeps no limit; start"
                " the server with one that does, as auto"
            )
        return wanted or None

    def _adopt(self, config: LayeredConfig, reason: str) -> None:
        if self._on_steps is not None:
            self._learned = (self.config, self.policy)
        learned = self._learned
        if learned is not None and _same_policy(config, learned[0]):
            policy = learned[1]
            config.hand_limit(policy)
        else:
            policy = config.make_policy()
        self.put_in_force(config, policy, reason)

    def put_in_force(self, config: LayeredConfig, policy: GroupPolicy, reason: str) -> None:
        """From now on these, and everybody who listens is told."""
        mode_changes = config.prefill_mode != self.config.prefill_mode
        self.config, self.policy = config, policy
        get_context().override(
            source="layered",
            prefill_mode=config.prefill_mode,
            layered_group_tokens=config.layered_group_tokens,
            layered_num_groups=config.layered_num_groups,
            layered_max_parked=config.layered_max_parked,
            slo_tbt_ms=config.slo_tbt_ms,
        )
        self._stream.emit(SettingsChanged(config, reason, mode_changes))


class Admission:
    """The budget of a cohort: an operator allows a part of the server's, a step policy takes a part of that.

    `most_tokens` is what the operator allows; None without --chunked-prefill-size.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._at_start: int | None = scheduler.chunked_prefill_size
        self.most_tokens = self._at_start

    def check(self, wanted: int) -> int:
        """The whole pages of what an operator asks for.

        Raises:
            ConfigError: it is more than the server was started with, or less than a page.
        """
        limit, page = self._at_start, self._scheduler.page_size
        if limit is None:
            raise ConfigError("layered_cohort_tokens: this server was started with --chunked-prefill-size -1")
        if not page <= wanted <= limit:
            raise ConfigError(
                f"layered_cohort_tokens {wanted}: give {page} to {limit}, the server's --chunked-prefill-size"
            )
        return wanted - wanted % page

    def allow(self, num_tokens: int) -> None:
        """From the next cohort on, as an operator wants it."""
        self.most_tokens = num_tokens
        get_context().override(source="layered", chunked_prefill_size=num_tokens)
        self.take_all()

    def take_all(self) -> None:
        """No step policy decides: a cohort may have what the operator allows."""
        self._scheduler.chunked_prefill_size = self.most_tokens

    def take(self, wanted: int) -> None:
        """A step policy wants so many tokens: whole pages, one at least."""
        page, most = self._scheduler.page_size, self.most_tokens or wanted
        self._scheduler.chunked_prefill_size = min(max(wanted - wanted % page, page), most)

    def somebody_waits(self) -> bool:
        """True with a prompt in the queue, or one between two chunks."""
        return bool(self._scheduler.waiting_queue) or self._scheduler.chunked_req is not None

    def view(self, running: list[Any], due_s: float | None, most: int) -> QueueView:
        """What waits: tokens to compute and tokens before them, of prompts until `most` are together."""
        lens: list[int] = []
        prefixes: list[int] = []
        chunked = self._scheduler.chunked_req
        reqs = ([] if chunked is None else [chunked]) + self._scheduler.waiting_queue
        for req in reqs:
            done = requests.extend_end(req) if req is chunked else requests.prefix_len(req)
            if req.seqlen > done:
                lens.append(req.seqlen - done)
                prefixes.append(done)
            if sum(lens) >= most:
                break
        decode_tokens = sum(req.seqlen for req in running)
        return QueueView(tuple(lens), tuple(prefixes), len(running), decode_tokens, due_s, most)

    def order_by_deadline(self, policy: StepPolicy, now_s: float, limit_ms: float | None) -> None:
        """Prompts with a limit on their first token go by slack; SGLang then takes them in this order."""
        queue = self._scheduler.waiting_queue
        if limit_ms is None or len(queue) < 2 or not self._is_first_come():
            return
        prompts = [
            WaitingPrompt(
                getattr(req, "layered_arrived_s", now_s),
                policy.prompt_s(req.seqlen - requests.prefix_len(req)),
            )
            for req in queue
        ]
        queue[:] = [queue[index] for index in order_by_slack(prompts, now_s, limit_ms / 1e3)]

    def note_arrivals(self, now_s: float) -> None:
        """Who has come since the last step has come now."""
        for req in reversed(self._scheduler.waiting_queue):  # the youngest come last
            if hasattr(req, "layered_arrived_s"):
                break
            req.layered_arrived_s = now_s

    def _is_first_come(self) -> bool:
        args = arguments.resolved(self._scheduler.server_args)
        return bool(args.schedule_policy == "fcfs" and not args.enable_priority_scheduling)


def _same_policy(one: LayeredConfig, other: LayeredConfig) -> bool:
    """True when a policy may stay, with all it has learned."""
    same = {name: getattr(other, name) for name in ("prefill_mode", "slo_tbt_ms", "layered_max_parked")}
    return replace(one, **same) == other


def _whole(key: str, value: float) -> int:
    if not isfinite(value) or value != int(value) or value < 0:  # JSON of SGLang's allows NaN and Infinity
        raise ConfigError(f"{key} {value}: give a whole number")
    return int(value)


def _one_of(key: str, value: int) -> str:
    if value not in (0, 1):
        raise ConfigError(f"{key} {value}: give 1 for layered or 0 for chunked")
    return "layered" if value else "chunked"
