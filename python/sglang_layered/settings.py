"""Settings that an operator changes on a running server, through SGLang's `/set_internal_state` (admin only).

`{"server_args": {"layered_prefill": 0}}`: values are numbers. The scheduler changes them, or refuses; the
HTTP server answers a refusal with 400 and the reason. A request that names none of our keys is SGLang's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

KEYS = (
    "layered_prefill",
    "layered_group_tokens",
    "layered_num_groups",
    "layered_cohort_tokens",
    "layered_max_parked",
    "layered_tbt_ms",
)


def owns(wanted: Mapping[str, float]) -> bool:
    """True when a request names a setting of ours."""
    return bool(set(KEYS) & wanted.keys())


def change(scheduler: Any, wanted: Mapping[str, float]) -> Any:
    """Change what a request names, in the scheduler's process; gives SGLang's answer."""
    loop = getattr(scheduler, "layered_loop", None)
    if loop is None:
        return refusal(
            f"{', '.join(wanted)}: this server was started without --prefill-mode layered; start it with that"
            " flag"
        )
    return loop.controls.handle(wanted)


def refusal(reason: str) -> Any:
    """SGLang's answer that nothing was changed, with the reason."""
    from sglang.srt.managers.io_struct import SetInternalStateReqOutput

    # The answer has no field for a reason. `rid` is text that every message of SGLang's has and that nobody
    # reads in this one: the way back to the HTTP worker is `http_worker_ipc`.
    return SetInternalStateReqOutput(updated=False, rid=reason)


def raise_refused(answers: Sequence[Any]) -> None:
    """In the HTTP server's process: let a request fail whose settings a scheduler refused.

    Raises:
        HTTPException: 400, with the reason of each data-parallel replica that had another one.
    """
    reasons = dict.fromkeys(answer.rid for answer in answers if not answer.updated and answer.rid)
    if not reasons:
        return
    from fastapi import HTTPException

    num_changed = sum(answer.updated for answer in answers)
    rest = f"; {num_changed} of {len(answers)} replicas changed" if num_changed else "; nothing changed"
    raise HTTPException(400, "; ".join(reasons) + rest)
