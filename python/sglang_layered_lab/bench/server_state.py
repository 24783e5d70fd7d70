"""What a run asks of its server before the load comes: other settings, an empty prefix cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from sglang_layered.errors import BenchError

TIMEOUT_S = 60.0


def ask(
    method: str, url: str, path: str, *, remedy: str, statuses: Sequence[int] = (200,), **options: Any
) -> httpx.Response:
    """Ask the server whose API's root is `url`; `options` are those of `httpx.request`.

    Raises:
        BenchError: no server answers there, or with another status; one line that ends with the remedy.
    """
    try:
        reply = httpx.request(method, url + path, timeout=TIMEOUT_S + 10, trust_env=False, **options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(f"no server answers at {url} ({error}); start it, or correct server.url") from error
    if reply.status_code not in statuses:
        said = " ".join(reply.text.split())[:300]
        raise BenchError(f"{url}{path} answers with status {reply.status_code} ({said}); {remedy}")
    return reply


def put_in_force(url: str, settings: Mapping[str, float]) -> None:
    """Change what a running server can change; it takes effect at its next cohort.

    Raises:
        BenchError: the server would not.
    """
    if settings:
        asked = dict(settings)
        remedy = f"it refused server.settings {asked}, and its log says why; correct them"
        reply = ask("POST", url, "/set_internal_state", remedy=remedy, json={"server_args": asked})
        try:
            is_set = all(reply.json())  # one answer a replica
        except ValueError:
            is_set = False
        if not is_set:
            raise BenchError(f"{url}/set_internal_state answers {reply.text.strip()}; {remedy}")


def flush_cache(url: str) -> None:
    """Empty the prefix cache, so that repetitions are alike.

    Raises:
        BenchError: the server would not.
    """
    remedy = "see that it is an SGLang server and that nobody else uses it"
    ask("POST", url, "/flush_cache", remedy=remedy, params={"timeout": TIMEOUT_S})
