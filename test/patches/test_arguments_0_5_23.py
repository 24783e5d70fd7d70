"""The arguments of SGLang 0.5.23, as they were read there, on stand-ins for SGLang's modules."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, ClassVar, get_args, get_type_hints
from unittest.mock import MagicMock

import msgspec
import pytest

from release_stand_ins import loaded

HOOKS: dict[str, Any] = {}


def registered(step: str) -> Any:
    return lambda hook: HOOKS.setdefault(step, hook)


@pytest.fixture
def arguments() -> Iterator[ModuleType]:
    HOOKS.clear()

    def result(record: Any, name: str) -> Any:
        return record.decided.get(name, getattr(record, name)) or record.fallback.get(name)

    base = SimpleNamespace(
        resolving_view=lambda record: record,
        model_config_of=lambda record: f"the config of {record.model_path}",
        attention_backends_of=lambda view: (view.attention_backend, view.attention_backend),
    )
    overrides = SimpleNamespace(resolution_result=result, declare_resolution=MagicMock())
    context = SimpleNamespace(attn_dp_enabled_of=lambda record: record.attn_dp_size > 1)
    with loaded(
        "arguments",
        runtime_context=context,
        arg_groups__model_override_base=base,
        arg_groups__overrides=overrides,
        arg_groups__choices=MagicMock(),
        arg_groups__resolution_hooks=SimpleNamespace(register_resolution_hook=registered),
    ) as module:
        yield module


def record(**decided: Any) -> SimpleNamespace:
    return SimpleNamespace(
        attention_backend=None,
        page_size=None,
        model_path="typed",
        enable_dp_attention=False,
        attn_dp_size=2,
        decided=decided,
        fallback={"page_size": 1},
    )


def test_arguments_are_what_was_decided_before_what_was_typed(arguments: ModuleType) -> None:
    typed = record(attention_backend="fa3")
    args = arguments.resolved(typed)
    assert (args.attention_backend, args.page_size, args.model_path) == ("fa3", 1, "typed")
    assert args.enable_dp_attention, "the old flag has gone into a width"
    assert arguments.resolved(args) is args
    assert arguments.attention_backends_of(typed) == arguments.attention_backends_of(args) == ("fa3", "fa3")
    assert arguments.model_config_of(args) == arguments.model_config_of(typed) == "the config of typed"
    with pytest.raises(AttributeError):
        _ = args.no_such_flag


def test_what_we_decide_is_declared_on_the_record(arguments: ModuleType) -> None:
    typed = record()
    arguments.decide(arguments.resolved(typed), page_size=16)
    arguments.overrides.declare_resolution.assert_called_once_with(typed, "layered prefill", page_size=16)


@pytest.mark.parametrize("is_ours", [True, False])
def test_our_attention_is_taken_once_the_model_was_looked_at(arguments: ModuleType, is_ours: bool) -> None:
    typed, order = record(), list[str]()
    arguments.take_attention_on_cpus(None, "ours", lambda record: is_ours, lambda record: is_ours)
    declared = arguments.overrides.declare_resolution
    declared.side_effect = lambda record, source, attention_backend: order.append(str(attention_backend))
    HOOKS["handle_cpu_backends"](typed, lambda record: order.append("SGLang's choice"))
    HOOKS["handle_attention_backend_compatibility"](typed, lambda record: order.append("its checks"))
    assert order == (
        ["SGLang's choice", "None", "ours", "its checks"] if is_ours else ["SGLang's choice", "its checks"]
    )


class Schedule(msgspec.Struct):
    """As SGLang's namespace of flags."""

    _NS_PATH: ClassVar[str] = "schedule"
    page_size: Annotated[int | None, "Its help."] = None


def test_flags_are_fields_of_a_namespace_of_structs(arguments: ModuleType) -> None:
    settings: dict[str, Any] = {
        "help": "In layers or in chunks.",
        "choices": ["chunked", "layered"],
        "nargs": None,
    }
    flags = [
        ("prefill_mode", str, "chunked", settings),
        ("layered_num_groups", int | None, None, {"help": ""}),
    ]
    made = arguments.with_fields(Schedule, flags)
    defaults = {field.name: field.default for field in msgspec.structs.fields(made)}
    assert defaults == {"page_size": None, "prefill_mode": "chunked", "layered_num_groups": None}
    assert made._NS_PATH == "schedule" and made.__name__ == "Schedule" and made.__module__ == __name__
    hints = get_type_hints(made, include_extras=True)
    kind, arg = get_args(hints["prefill_mode"])
    assert kind is str and (arg.help, arg.choices) == (settings["help"], settings["choices"])
