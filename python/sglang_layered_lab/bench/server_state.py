"""What a run asks of its server before the load comes: other settings, an empty prefix cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from sglang_layered.errors import BenchError

TIMEOUT_S = 60.0


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Make one line of whatever stops a request to the server at `url`.

    Raises:
        BenchError: no server answers there, or not as SGLang does.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(f"no server answers at {url} ({error}); start it, or correct server.url") from error
    except ValueError as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"{url} does not answer as SGLang does ({error}); give an SGLang server") from error


def check_answers(url: str) -> None:
    """Ask a server whether it is there.

    Raises:
        BenchError: it is not.
    """
    with answering(url):
        reply = httpx.get(f"{url}/v1/models", timeout=TIMEOUT_S, trust_env=False)
    if reply.status_code != httpx.codes.OK:
        raise BenchError(
            f"{url} answers with status {reply.status_code}; give the address of an SGLang server"
        )


def put_in_force(url: str, settings: Mapping[str, float]) -> None:
    """Change what a running server can change; it takes effect at its next cohort.

    Raises:
        BenchError: the server would not.
    """
    if not settings:
        return
    body = {"server_args": dict(settings)}
    with answering(url):
        reply = httpx.post(f"{url}/set_internal_state", json=body, timeout=TIMEOUT_S, trust_env=False)
        is_set = reply.status_code == httpx.codes.OK and all(reply.json())
    if not is_set:
        raise BenchError(
            f"server.settings {dict(settings)}: {url} refused them ({reply.text.strip()}); its log says why"
        )


def flush_cache(url: str) -> None:
    """Empty the prefix cache, so that repetitions are alike.

    Raises:
        BenchError: the server would not.
    """
    params = {"timeout": TIMEOUT_S}
    with answering(url):
        reply = httpx.post(f"{url}/flush_cache", params=params, timeout=TIMEOUT_S + 10, trust_env=False)
    if reply.status_code != httpx.codes.OK:
        raise BenchError(f"{url}/flush_cache: {reply.text.strip()}; see that nobody else uses the server")
