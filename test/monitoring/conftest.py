"""One Prometheus for all tests without a server: two made-up servers, one a mode, and a router."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from monitored import ask, prometheus, wait_until
from synthetic import MadeUpRouter, MadeUpServer, exported

# Series that are there only when others are: a mode for each server, each group's last rule, a router's rate.
LAST_OF_THEIR_KIND = (
    "count(instance:sglang_prefill_mode:info) == 2",
    "model_slo:sglang_burn:rate6h",
    "count(instance:sglang_expert_bytes_per_output_token:ratio_rate5m) == 2",
    "rate(smg_router_requests_total[4s])",
)


@pytest.fixture(scope="session")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that scrapes the made-up servers and has evaluated every rule on them."""
    folder = tmp_path_factory.mktemp("monitored")
    servers = [MadeUpServer("layered", seed=1), MadeUpServer("chunked", seed=2)]
    with exported(*servers, MadeUpRouter()) as (*scraped, router), ExitStack() as stack:
        url = stack.enter_context(prometheus(folder, {"sglang": scraped, "sglang-router": [router]}))
        for series in LAST_OF_THEIR_KIND:
            wait_until(series, lambda series=series: ask(url, "query", query=series)["data"]["result"])
        yield url


@pytest.fixture(scope="session")
def nothing_scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus without a target and without rules."""
    with prometheus(tmp_path_factory.mktemp("empty"), {"sglang": []}, with_rules=False) as url:
        yield url
