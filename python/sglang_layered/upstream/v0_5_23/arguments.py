"""SGLang 0.5.23's server arguments: a record of what was typed, with a list of what was decided beside it.

It is imported while SGLang defines them, so it imports modules and takes names from them when it is called.

Upstream: srt/server_args.py, srt/arg_groups/overrides.py, srt/arg_groups/model_override_base.py.
"""

from collections.abc import Iterable
from typing import Any

from sglang.srt import runtime_context
from sglang.srt.arg_groups import model_override_base, overrides
from sglang.srt.arg_groups.arg_utils import A, Arg


class Resolved:
    """The arguments as SGLang acts on them: what was decided last, or typed, or SGLang's fallback for None.

    The record's own fields hold what was typed, so nothing may be refused by them.
    """

    __slots__ = ("record",)

    def __init__(self, record: Any) -> None:
        self.record = record

    def __getattr__(self, name: str) -> Any:
        typed = getattr(self.record, name)  # AttributeError for what is no field
        if name == "enable_dp_attention":  # an old flag; what it asked for is a width of its own now
            return runtime_context.attn_dp_enabled_of(model_override_base.resolving_view(self.record))
        return typed if name.startswith("_") else overrides.resolution_result(self.record, name)


def resolved(server_args: Any) -> Any:
    """The arguments as SGLang acts on them, by the names of their fields."""
    return server_args if isinstance(server_args, Resolved) else Resolved(server_args)


def _record(given: Any) -> Any:
    return given.record if isinstance(given, Resolved) else given


def model_config_of(server_args: Any) -> Any:
    """SGLang's ModelConfig of these arguments."""
    return model_override_base.model_config_of(_record(server_args))


def attention_backends_of(server_args: Any) -> tuple[str, ...]:
    """The attention backends of prompts and of decode rows."""
    backends: tuple[str, ...] = model_override_base.attention_backends_of(resolved(server_args))
    return backends


def no_attention_backend_given(server_args: Any) -> bool:
    """True where SGLang is to choose."""
    return bool(model_override_base.is_attention_backend_not_set(resolved(server_args)))


def decide(server_args: Any, **values: Any) -> None:
    """Set these fields after SGLang has resolved its own, before it publishes them to its processes."""
    overrides.declare_resolution(_record(server_args), "layered prefill", **values)


def keeps_states_on_the_way(server_args: Any) -> bool:
    """True where a prompt's forward keeps states of recurrent layers for the prefix cache."""
    return bool(model_override_base.mamba_extra_buffer_of(resolved(server_args)))


def eager_prompt_mib(server_args: Any, capacity_mib: float) -> float:
    """SGLang's estimate of what prompts without CUDA graphs need of a device with so much memory, in MiB."""
    return float(overrides.pre_capture_activation_reserve_mb_of(resolved(server_args), capacity_mib))


def num_replicas(server_args: Any) -> int:
    """How often the whole model is on the server's devices; groups of attention share one."""
    return int(resolved(server_args).dp_size)


IS_ONE_CLASS = False
"""Flags are fields of the class that also parses and resolves them; or of a namespace, as `schedule`."""


def with_fields(cls: Any, flags: Iterable[tuple[str, Any, Any, dict[str, Any]]]) -> Any:
    """The class of flags with more of them: name, type, default and what `Arg` takes of each.

    It is a msgspec struct, whose fields are those that it was made with: so one that inherits is made.
    SGLang collects the fields of namespaces when it defines ServerArgs; one that is in no list of positions
    comes behind all others.
    """
    made, defaults = {}, {}
    for name, kind, default, settings in flags:
        made[name], defaults[name] = A[kind, Arg(**settings)], default
    body = {"__annotations__": made, "__module__": cls.__module__, "__doc__": cls.__doc__, **defaults}
    return type(cls)(cls.__name__, (cls,), body)
