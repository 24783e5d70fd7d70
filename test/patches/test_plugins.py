"""A plug-in of SGLang's that takes the place of a patch is refused; one that goes around it is not."""

from __future__ import annotations

import pkgutil

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

from sglang_layered.errors import UnsupportedError
from sglang_layered.upstream.plugins import PLACES, SCHEDULER, refuse_replaced_places


@pytest.fixture(autouse=True)
def no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = {key: list(value) for key, value in HookRegistry._hooks.items()}
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list, hooks))


def hook(*args: object) -> None:
    pass


@pytest.mark.parametrize("target", sorted(PLACES))
def test_what_replaces_a_place_is_named_with_the_remedy(target: str) -> None:
    HookRegistry.register(target, hook, HookType.REPLACE, source=HookSource("theirs", "their-package"))
    with pytest.raises(UnsupportedError, match=rf"plug-in theirs replaces {target},.*SGLANG_PLUGINS"):
        refuse_replaced_places()


def test_what_goes_around_a_place_or_replaces_another_may_stay() -> None:
    for kind in (HookType.BEFORE, HookType.AFTER, HookType.AROUND):
        HookRegistry.register(f"{SCHEDULER}.dispatch_event_loop", hook, kind)
    HookRegistry.register(f"{SCHEDULER}.Scheduler.on_idle", hook, HookType.REPLACE)
    refuse_replaced_places()


def test_places_are_there() -> None:
    for target in PLACES:
        assert callable(pkgutil.resolve_name(target))
