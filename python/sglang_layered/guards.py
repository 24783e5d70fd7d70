"""Guards against inputs that harm SGLang 0.5.17 in every mode; docs/features.md has what is not guarded."""

from __future__ import annotations

from typing import Any

FIELDS = (
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "bootstrap_pair_key",
    "disagg_prefill_dp_rank",
)


def drop_disaggregation_fields(scheduler: Any, request: Any) -> None:
    """Make a request as if its client had set no field of disaggregation, where disaggregation is off.

    The address of SGLang's own fake sender, 2.2.2.2, keeps a prompt out of the prefix cache; one of several
    chunks then begins again with every chunk, in other slots, until the pool is empty.
    """
    if scheduler.disaggregation_mode.value != "null":
        return
    for name in FIELDS:
        setattr(request, name, None)
