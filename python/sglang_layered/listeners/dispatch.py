"""Gives every event to the attached listeners, and finds the listeners that a flag names.

A listener can slow a server down but not stop it: one that raises is detached. One whose file cannot be
written any more is told of in one line, without a traceback: a full disk is no fault of the listener's.
"""

import logging
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any, Protocol, runtime_checkable

from sglang_layered.core.events import Event
from sglang_layered.core.lookup import find_factory
from sglang_layered.errors import ConfigError
from sglang_layered.listeners.jsonl import JsonlListener
from sglang_layered.listeners.perfetto import PerfettoListener

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "sglang_layered.listeners"
SHIPPED = {"jsonl": JsonlListener, "perfetto": PerfettoListener}


@runtime_checkable
class Listener(Protocol):
    """Hears every event of a server, in order and in the scheduler's thread.

    A method `close()` is optional; it is called once, when the server ends or the listener is detached. So is
    a static method `check(argument, where)`: it is called before a server starts and raises ConfigError, its
    text beginning with `where`, when the argument cannot be used.
    """

    def on_event(self, event: Event) -> None:
        """Take note of `event`. An exception detaches the listener; the server goes on."""


class Listeners:
    """The attached listeners; false when there are none, so that callers need not make the event."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._attached = list(listeners)

    def __bool__(self) -> bool:
        return bool(self._attached)

    def attach(self, listener: Listener) -> None:
        """Let one more listen."""
        self._attached.append(listener)

    def emit(self, event: Event) -> None:
        """Give `event` to each listener; one that raises is logged, closed and never called again."""
        for listener in tuple(self._attached):
            try:
                listener.on_event(event)
            except OSError as error:
                logger.warning(
                    "Listener %s can no longer write (%s) and is detached; the server goes on",
                    _name(listener),
                    error,
                )
                self._detach(listener, has_failed_to_write=True)
            except Exception:
                logger.exception("Listener %s raised on %s and is detached", _name(listener), event)
                self._detach(listener)

    def _detach(self, listener: Listener, has_failed_to_write: bool = False) -> None:
        self._attached = [kept for kept in self._attached if kept is not listener]
        _close(listener, has_failed_to_write)

    def close(self) -> None:
        """Close and detach all."""
        attached, self._attached = self._attached, []
        for listener in attached:
            _close(listener)


def find_listeners(specs: Sequence[str]) -> Listeners:
    """The listeners behind `--layered-listeners SPEC ...`, made and ready.

    SPEC is NAME, NAME=ARGUMENT, module:Class or module:Class=ARGUMENT. NAME is `jsonl`, `perfetto` or an
    entry point of group `sglang_layered.listeners`. ARGUMENT is given to the factory as one string.

    Raises:
        ConfigError: a name is unknown, cannot be imported, is no listener, or cannot use its argument.
    """
    made = Listeners()
    try:
        for spec in specs:
            made.attach(_make(spec))
    except ConfigError:
        made.close()
        raise
    return made


def check_listeners(specs: Sequence[str], may_write: bool = True) -> None:
    """Refuse what `find_listeners` would refuse, without making a listener.

    Where they `may_write` also what their own `check` refuses: files that cannot be written.

    Raises:
        ConfigError: with the flag, the reason and the remedy.
    """
    for spec in specs:
        made = _find(spec)
        check = getattr(made.func, "check", None)
        if may_write and made.args and callable(check):
            check(*made.args, _where(spec))


def _make(spec: str) -> Listener:
    make, where = _find(spec), _where(spec)
    try:
        listener = make()
    except OSError as error:
        raise ConfigError(f"{where}: {error}; give a path that can be written") from error
    except Exception as error:
        raise ConfigError(f"{where}: cannot make the listener: {error!r}") from error
    if not isinstance(listener, Listener):
        raise ConfigError(f"{where}: it has no method on_event(event); add one")
    return listener


def _find(spec: str) -> partial[Any]:
    name, _, argument = spec.partition("=")
    factory = find_factory("listener", name, where=_where(spec), group=ENTRY_POINT_GROUP, shipped=SHIPPED)
    arguments, takes = (argument,) if argument else (), signature(factory)
    try:
        takes.bind(*arguments)
    except TypeError as error:
        usage = f"{name}={next(iter(takes.parameters)).upper()}" if takes.parameters else name
        raise ConfigError(f"{_where(spec)}: {error}; give {usage}") from error
    return partial(factory, *arguments)


def _where(spec: str) -> str:
    return f"--layered-listeners {spec}"


def _close(listener: Listener, has_failed_to_write: bool = False) -> None:
    """Close it, if it can be; what it could not write was told already."""
    close = getattr(listener, "close", None)
    if close is None:
        return
    try:
        close()
    except OSError as error:
        if not has_failed_to_write:
            logger.warning("Listener %s raised on close: %s", _name(listener), error)
    except Exception:
        logger.exception("Listener %s raised on close", _name(listener))


def _name(listener: Listener) -> str:
    return f"{type(listener).__module__}:{type(listener).__qualname__}"
