"""What a command says of its work when it is stopped by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def said_when_stopped(kept: Callable[[], str]) -> Iterator[None]:
    """Say on stderr what is kept and what is lost, and go on stopping; `kept` is asked only then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(kept(), err=True)
        raise
