"""What tests must know of differences between releases of SGLang, all in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sglang_layered.upstream.releases import boundaries


@contextmanager
def unproved_ranges() -> Iterator[None]:
    """No model made inside is looked at: the exact one knows nobody but the requests that it expects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "PROVES_STAGES", False)
        yield


def settings_like(served: Any) -> dict[str, Any]:
    """What a runner of 0.5.23 asks its model for at each forward, as the served model answers."""
    name = "shared_experts_config"
    return {name: getattr(served, name)} if hasattr(served, name) else {}


def resolve(server_args: Any) -> None:
    """As a server does before it checks its arguments; 0.5.17 does it where it makes them."""
    if hasattr(server_args, "resolve_once"):
        server_args.resolve_once()
