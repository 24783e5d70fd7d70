"""SGLang 0.5.17's server arguments: an object whose fields hold what was resolved.

It is imported while SGLang defines that class, and so imports nothing of it. Upstream: srt/server_args.py.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any


def resolved(server_args: Any) -> Any:
    """The arguments as SGLang acts on them, by the names of their fields."""
    return server_args


def model_config_of(server_args: Any) -> Any:
    """SGLang's ModelConfig of these arguments."""
    return server_args.get_model_config()


def attention_backends_of(server_args: Any) -> tuple[str, ...]:
    """The attention backends of prompts and of decode rows."""
    backends: tuple[str, ...] = server_args.get_attention_backends()
    return backends


def no_attention_backend_given(server_args: Any) -> bool:
    """True where SGLang is to choose."""
    return bool(server_args.is_attention_backend_not_set())


def decide(server_args: Any, **values: Any) -> None:
    """Set these fields after SGLang has resolved its own, before anything is started with them."""
    server_args.override("layered prefill", **values)


def keeps_states_on_the_way(server_args: Any) -> bool:
    """True where a prompt's forward keeps states of recurrent layers for the prefix cache."""
    return bool(server_args.enable_mamba_extra_buffer())


def eager_prompt_mib(server_args: Any, capacity_mib: float) -> float:
    """SGLang's estimate of what prompts without CUDA graphs need of a device with so much memory, in MiB."""
    return float(server_args.pre_capture_activation_reserve_mb(capacity_mib))


def num_replicas(server_args: Any) -> int:
    """How often the whole model is on the server's devices."""
    return 1 if server_args.enable_dp_attention else int(server_args.dp_size)


def serves_in_rust() -> bool:
    """Whatever the environment says: there is no such server."""
    return False


IS_ONE_CLASS = True
"""Flags are fields of the class that also parses and resolves them; or of a namespace, as `schedule`."""


def with_fields(cls: Any, flags: Iterable[tuple[str, Any, Any, dict[str, Any]]]) -> Any:
    """The class of flags with more of them: name, type, default and what `Arg` takes of each.

    Help, parsing, Engine keywords, `/server_info` and the `schedule` namespace follow from the annotation.
    """
    from sglang.srt.arg_groups.arg_utils import NS, A, Arg

    for name, kind, default, settings in flags:
        cls.__annotations__[name] = A[kind, Arg(**settings), NS("schedule")]
        setattr(cls, name, default)
    return cls


def let_flags_be_added(cls: Any, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Put `wrap` around what adds the flags of the class to a parser."""
    cls.add_cli_args = staticmethod(wrap(cls.add_cli_args))


def register_model_override(architecture: str) -> Any:
    """Decorate what says of arguments and a model's config which of the former are others for it."""
    from sglang.srt.arg_groups import overrides

    return overrides.register_model_override(architecture)


def take_attention_on_cpus(
    flags_class: Any, name: str, begin: Callable[[Any], bool], takes: Callable[[Any], bool]
) -> None:
    """Let attention backend `name` be given, and be what a CPU's arguments have of which `begin` is true.

    Up to where SGLang would fall back to `torch_native` it resolves the flags of such a server as if none was
    given: many families accept a few of its names only, and none is accepted by all of them. `takes` says
    later what `begin` said. Upstream: `ServerArgs._handle_cpu_backends`, srt/arg_groups/overrides.py.
    """
    from sglang.srt.arg_groups import overrides
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    if name not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([name])
    choose, fall_back = flags_class._handle_cpu_backends, overrides._attention_backend_platform_fallbacks

    @wraps(choose)
    def choose_ours(self: Any) -> None:
        takes_ours = begin(self)
        choose(self)
        if takes_ours:
            self.attention_backend = None

    @wraps(fall_back)
    def fall_back_to_ours(view: Any) -> dict[str, Any]:
        return {"attention_backend": name} if takes(view) else fall_back(view)

    flags_class._handle_cpu_backends = choose_ours
    overrides._attention_backend_platform_fallbacks = fall_back_to_ours
