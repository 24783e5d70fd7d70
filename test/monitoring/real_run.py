"""Real servers in both modes under traffic, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from energy_replay import environment_of
from event_lines import events
from tiny_models import tiny_model

from monitored import prometheus
from otlp import Collector, collector
from servers import LAYERED, serve
from sglang_layered_lab.serving import ServerProcess
from workload import prompt

METRICS = ("--enable-metrics", "--enable-expert-traffic-metrics", "--enable-energy-metrics")
METRICS += ("--slo-ttft-ms", "1000", "--slo-tbt-ms", "40")
MODES = {"layered": (*LAYERED, "--layered-policy", "auto"), "chunked": ("--chunked-prefill-size", "256")}
NUM_CLIENTS = 5  # on each server
# Made-up power of two devices, in a loop: what is tested is that joules arrive, not how many.
ENERGY = {
    "loop": True,
    "devices": [
        {
            "device": f"gpu{index}",
            "samples": [
                {"at_s": 0, "watts": 90 + index},
                {"at_s": 5, "watts": 310},
                {"at_s": 9, "watts": 90},
            ],
        }
        for index in range(2)
    ],
}


@dataclass(frozen=True)
class Run:
    """What is up: the servers' and Prometheus' URLs, and where spans go."""

    servers: dict[str, str]
    prometheus: str
    traces: Collector  # of the layered server


class Traffic:
    """Streams from some clients on a server, one after another each, until it is stopped."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._seed = url, seed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self.num_finished = 0
        self.problems: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    async def _all(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=300, trust_env=False) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(NUM_CLIENTS)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(100 * self._seed + number)
        while not self._stopped.is_set():
            shared = prompt(192, rng.randrange(3))  # so that the prefix cache has hits
            tokens = shared + prompt(rng.choice([20, 200, 600, 1500]), rng.randrange(10**6))
            try:
                await self._stream(client, tokens, rng.randrange(12, 48))
                self.num_finished += 1
            except (httpx.HTTPError, ValueError) as error:
                self.problems.append(repr(error))

    @staticmethod
    async def _stream(client: httpx.AsyncClient, tokens: tuple[int, ...], num_outputs: int) -> None:
        sampling = {"temperature": 0, "max_new_tokens": num_outputs, "ignore_eos": True}
        body = {"input_ids": list(tokens), "stream": True, "sampling_params": sampling}
        async with client.stream("POST", "/generate", json=body) as reply:
            reply.raise_for_status()
            last = [event async for event in events(reply)][-1]
        if last["meta_info"]["completion_tokens"] != num_outputs:
            raise ValueError(f"a stream ended early: {last}")


@contextmanager
def real_run(folder: Path) -> Iterator[Run]:
    """A layered and a chunked server, and a Prometheus that scrapes both."""
    model = tiny_model("qwen3_moe")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "energy.json"
    script.write_text(json.dumps(ENERGY))
    environment = environment_of(script)
    environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    with ExitStack() as stack:
        traces = stack.enter_context(collector())
        modes = {**MODES, "layered": (*MODES["layered"], *traces.flags)}
        started: dict[str, ServerProcess] = {
            mode: stack.enter_context(serve(folder / mode, model, *flags, *METRICS, env=environment))
            for mode, flags in modes.items()
        }
        urls = {mode: server.base_url for mode, server in started.items()}
        targets = [url.removeprefix("http://") for url in urls.values()]
        scraping = stack.enter_context(prometheus(folder / "prometheus", {"sglang": targets}))
        yield Run(urls, scraping, traces)


@contextmanager
def traffic(run: Run) -> Iterator[list[Traffic]]:
    """Streams on every server of a run."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(Traffic(url, seed)) for seed, url in enumerate(run.servers.values(), start=1)
        ]
