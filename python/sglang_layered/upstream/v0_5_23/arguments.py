"""SGLang 0.5.23's server arguments: a record of what was typed, with a list of what was decided beside it.

It is imported while SGLang defines them, so it imports modules and takes names from them when it is called.

Upstream: srt/server_args.py, srt/arg_groups/overrides.py, srt/arg_groups/model_override_base.py.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt import environ, runtime_context
from sglang.srt.arg_groups import arg_utils, choices, model_override_base, overrides, resolution_hooks
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


def serves_in_rust() -> bool:
    """True where HTTP, tokenizer and streams are threads in Rust, inside the scheduler's process."""
    return bool(environ.envs.SGLANG_RUST_SERVER.get())


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


def let_flags_be_added(cls: Any, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Put `wrap` around what adds the flags of a class, and with them those of its namespaces, to a parser.

    ServerArgs' module imports that function by its name, perhaps before it imports this namespace.
    """
    arg_utils.add_cli_args_from_dataclass = wrap(arg_utils.add_cli_args_from_dataclass)
    importing = sys.modules.get("sglang.srt.server_args")
    if importing is not None:
        vars(importing)["add_cli_args_from_dataclass"] = arg_utils.add_cli_args_from_dataclass


def register_model_override(architecture: str) -> Any:
    """Decorate what says of arguments and a model's config which of the former are others for it."""
    return model_override_base.register_model_override(architecture)


def take_attention_on_cpus(
    flags_class: Any, name: str, begin: Callable[[Any], bool], takes: Callable[[Any], bool]
) -> None:
    """Let attention backend `name` be given, and be what a CPU's arguments have of which `begin` is true.

    Until it has looked at the model SGLang resolves the flags of such a server as if none was given: many
    families accept a few of its names only, and none is accepted by all of them. `takes` says later what
    `begin` said. Upstream: srt/arg_groups/resolution_hooks.py.
    """
    if name not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([name])

    @resolution_hooks.register_resolution_hook("handle_cpu_backends")
    def leave_it_open(server_args: Any, previous: Callable[[Any], None]) -> None:
        takes_ours = begin(server_args)
        previous(server_args)
        if takes_ours:
            decide(server_args, attention_backend=None)

    @resolution_hooks.register_resolution_hook("handle_attention_backend_compatibility")
    def take_ours(server_args: Any, previous: Callable[[Any], None]) -> None:
        if takes(server_args):
            decide(server_args, attention_backend=name)
        previous(server_args)
