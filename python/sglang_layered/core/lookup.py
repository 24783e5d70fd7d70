"""Finds what a flag names: something that ships, an installed entry point, or `module:Class`.

It makes nothing and does not know what the found factory returns.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sglang_layered.errors import ConfigError

Factory = Callable[..., Any]


def find_factory(kind: str, name: str, *, where: str, group: str, shipped: Mapping[str, Factory]) -> Factory:
    """The factory behind `name`, of what `shipped` has, entry points of `group` name, or `module:Class` is.

    `kind` is the word for the thing in messages; `where`, the flag and its value, starts every message.

    Raises:
        ConfigError: the name is unknown, cannot be imported, or cannot be called.
    """
    if name in shipped:
        return shipped[name]
    installed = {entry.name: entry for entry in entry_points(group=group)}
    load: Callable[[], Any]
    if ":" in name:
        load, remedy = partial(_imported, name), "give module:Class of an importable class"
    elif name in installed:
        load, remedy = installed[name].load, f"repair the package that installs {installed[name].value}"
    else:
        known = ", ".join(sorted({*shipped, *installed}))
        raise ConfigError(f"{where}: unknown {kind}; known: {known}, or module:Class")
    try:
        factory: Factory = load()
    except Exception as error:
        raise ConfigError(f"{where}: {error}; {remedy}") from error
    if not callable(factory):
        raise ConfigError(f"{where}: {factory!r} cannot be called; name a class or a function")
    return factory


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
