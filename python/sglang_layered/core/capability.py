"""What a policy says that it can: whatever asks more of it than a plan asks for the capability, never a name.

It knows no policy, and calls none.
"""

from collections.abc import Mapping
from enum import Enum

from sglang_layered.errors import ConfigError


class Capability(Enum):
    """One thing that a policy can do beside `plan(view)`; the names are in its attribute `can`."""

    LEARNS = "LEARNS"
    """It hears what every step took; what it learned may be kept in `--layered-calibration-file`."""

    KEEPS_TBT_LIMIT = "KEEPS_TBT_LIMIT"
    """It is told `--slo-tbt-ms`, changes of it on the running server, and the gaps that its steps made."""

    PACES_STEPS = "PACES_STEPS"
    """It says before every step how far the cohort goes in it, and how many tokens the next cohort has."""

    ORDERS_QUEUE = "ORDERS_QUEUE"
    """It says which of the waiting prompts may be admitted, and in which order."""

    HOLDS_PROMPTS = "HOLDS_PROMPTS"
    """It says how long prompts wait for a fuller cohort."""

    PREEMPTS_COHORTS = "PREEMPTS_COHORTS"
    """It says who goes before the cohort in flight, with --layered-max-parked."""

    CHOOSES_DECODES = "CHOOSES_DECODES"
    """It says which running requests decode in a step that computes prompts."""

    RUNS_ON_STAGES = "RUNS_ON_STAGES"
    """Its `plan(view)` alone is enough: with `--pp-size` above 1 nothing else of it is asked or told."""


QUESTIONS: Mapping[Capability, str] = {
    Capability.ORDERS_QUEUE: "order",
    Capability.HOLDS_PROMPTS: "hold",
    Capability.PREEMPTS_COHORTS: "preempt",
    Capability.CHOOSES_DECODES: "decode_rows",
}
"""The question of `core/questions.py` that each stands for; requests then have limits of their own."""

ON_STEPS = frozenset({Capability.LEARNS, Capability.KEEPS_TBT_LIMIT, Capability.PACES_STEPS, *QUESTIONS})
"""With any of them a policy has a part in every step."""

PLANS_ONLY = frozenset({Capability.RUNS_ON_STAGES})
"""Of a policy without `can`: a plan for each cohort needs no more than the sizes of the layers."""

METHODS: Mapping[Capability, tuple[str, ...]] = {
    Capability.LEARNS: ("begin", "observe", "learned"),
    Capability.KEEPS_TBT_LIMIT: ("keep_tbt_limit", "observe_gap"),
    Capability.PACES_STEPS: ("begin", "cohort_tokens", "next_layers", "prompt_s"),
    Capability.RUNS_ON_STAGES: (),
    **{capability: (method,) for capability, method in QUESTIONS.items()},
}
"""What a policy must have for each capability; LEARNS also needs the attribute `amounts`."""


def capabilities_of(policy: object) -> frozenset[Capability]:
    """What a policy says that it can."""
    found: frozenset[Capability] = getattr(policy, "can", PLANS_ONLY)
    return found


def check_capabilities(policy: object, where: str) -> None:
    """Refuse a policy whose methods and whose `can` do not agree; `where` begins the message.

    Raises:
        ConfigError: it names what is missing.
    """
    can = capabilities_of(policy)
    if not isinstance(can, frozenset) or not all(isinstance(each, Capability) for each in can):
        raise ConfigError(f"{where}: its attribute can is {can!r}; give a frozenset of Capability")
    for capability, names in METHODS.items():
        there = [name for name in names if callable(getattr(policy, name, None))]
        if there and not hasattr(policy, "can"):  # methods that nobody would call are no plan of the author's
            raise ConfigError(
                f"{where}: it has a method {there[0]} and no attribute can; add can ="
                f" frozenset({{Capability.{capability.value}}}), with every capability that it has"
            )
        missing = [name for name in names if name not in there]
        if capability in can and missing:
            raise ConfigError(
                f"{where}: it can {capability.value} and has no method {', '.join(missing)}; add it"
            )
    amounts = getattr(policy, "amounts", None)
    is_named = isinstance(amounts, tuple) and all(isinstance(name, str) for name in amounts)
    if Capability.LEARNS in can and not is_named:
        raise ConfigError(
            f"{where}: it can LEARNS and its attribute amounts is {amounts!r}; give a tuple of strings that"
            " name what it learns, which the calibration file is checked against"
        )
