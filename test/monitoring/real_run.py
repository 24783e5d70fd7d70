"""Real servers in both modes under traffic, scraped by a real Prometheus; as a command: their picture.

.venv/bin/python test/monitoring/real_run.py --minutes 4 --out docs/dashboard.png
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx

TEST = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TEST), str(TEST / "e2e")]

from tiny_models import tiny_model, use_the_cpu  # noqa: E402

from monitored import prometheus  # noqa: E402
from otlp import Collector, collector  # noqa: E402
from servers import LAYERED, serve  # noqa: E402
from sglang_layered_lab.serving import ServerProcess  # noqa: E402
from workload import prompt  # noqa: E402

METRICS = ("--enable-metrics", "--enable-expert-traffic-metrics", "--enable-energy-metrics")
METRICS += ("--slo-ttft-ms", "1000", "--slo-tbt-ms", "40")
MODES = {"layered": (*LAYERED, "--layered-policy", "auto"), "chunked": ("--chunked-prefill-size", "256")}
NUM_CLIENTS = 5  # on each server
RATE_S = 20.0  # what Grafana takes at the 5 s between scrapes of prometheus.yml
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
            lines = [line async for line in reply.aiter_lines() if line.startswith("data: {")]
        last = json.loads(lines[-1].removeprefix("data: "))
        if last["meta_info"]["completion_tokens"] != num_outputs:
            raise ValueError(f"a stream ended early: {last}")


@contextmanager
def real_run(folder: Path) -> Iterator[Run]:
    """A layered and a chunked server, and a Prometheus that scrapes both."""
    model = tiny_model("qwen3_moe")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "energy.json"
    script.write_text(json.dumps(ENERGY))
    environment = {"SGLANG_LAYERED_ENERGY_REPLAY": str(script)}
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


@click.command()
@click.option("--minutes", type=float, default=4.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
def main(minutes: float, out: Path) -> None:
    """Run both servers under traffic and draw the dashboard from it."""
    from sglang_layered_lab.dashboard.cli import dashboard

    use_the_cpu()
    with tempfile.TemporaryDirectory() as folder, real_run(Path(folder)) as run:
        with traffic(run) as streams:
            time.sleep(60 * minutes)
        click.echo(f"{[stream.num_finished for stream in streams]} requests, {streams[0].problems[:1]}")
        args = ["--prometheus", run.prometheus, "--minutes", f"{minutes:g}"]
        smooth = ["--rate-seconds", f"{RATE_S:g}"]
        dashboard(["render", *args, *smooth, "--out", str(out)], standalone_mode=False)
        dashboard(["check", *args], standalone_mode=False)


if __name__ == "__main__":
    main()
