"""Finds what a flag names: something that ships, an installed entry point, or `module:Class`.

It makes nothing and does not know what the found factory returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sglang_layered.errors import ConfigError

Factory = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where the names of one flag are looked up.

    `kind` is the word for the thing in messages, `group` the entry-point group, `shipped` what this package
    brings under which name.
    """

    kind: str
    group: str
    shipped: Mapping[str, Factory]

    def find(self, name: str, *, where: str) -> Factory:
        """The factory behind `name`; `where` is the flag and its value, the start of every message.

        Raises:
            ConfigError: the name is unknown, cannot be imported, or cannot be called.
        """
        if name in self.shipped:
            return self.shipped[name]
        factory = _import(name, where) if ":" in name else self._entry_point(name, where)
        if not callable(factory):
            raise ConfigError(f"{where}: {factory!r} cannot be called; name a class or a function")
        found: Factory = factory
        return found

    def _entry_point(self, name: str, where: str) -> Any:
        installed = {entry.name: entry for entry in entry_points(group=self.group)}
        if name not in installed:
            known = ", ".join(sorted({*self.shipped, *installed}))
            raise ConfigError(f"{where}: unknown {self.kind}; known: {known}, or module:Class")
        try:
            return installed[name].load()
        except Exception as error:
            value = installed[name].value
            raise ConfigError(f"{where}: {error}; repair the package that installs {value}") from error


def _import(name: str, where: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise ConfigError(f"{where}: {error}; give module:Class of an importable class") from error
