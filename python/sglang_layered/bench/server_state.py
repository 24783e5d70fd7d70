"""What a run asks of its server before the load comes: other settings, an empty prefix cache."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from sglang_layered.errors import BenchError

TIMEOUT_S = 60.0


def put_in_force(url: str, settings: Mapping[str, float]) -> None:
    """Change what a running server can change; it takes effect at its next cohort.

    Raises:
        BenchError: the server would not.
    """
    if not settings:
        return
    body = {"server_args": dict(settings)}
    reply = httpx.post(f"{url}/set_internal_state", json=body, timeout=TIMEOUT_S, trust_env=False)
    if reply.status_code != httpx.codes.OK or not all(reply.json()):
        raise BenchError(
            f"server.settings {dict(settings)}: {url} refused them ({reply.text.strip()}); its log says why"
        )


def flush_cache(url: str) -> None:
    """Empty the prefix cache, so that repetitions are alike.

    Raises:
        BenchError: the server would not.
    """
    params = {"timeout": TIMEOUT_S}
    reply = httpx.post(f"{url}/flush_cache", params=params, timeout=TIMEOUT_S + 10, trust_env=False)
    if reply.status_code != httpx.codes.OK:
        raise BenchError(f"{url}/flush_cache: {reply.text.strip()}; see that nobody else uses the server")
