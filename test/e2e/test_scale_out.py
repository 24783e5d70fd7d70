"""Two layered servers behind SGLang's router, one killed under load; then two data-parallel replicas.

A request's id tells which replica served it: every replica writes the ids of its steps to a file of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from event_lines import event_of, lines
from tiny_models import tiny_model

from measured import MEASURING, replayed_energy, series, state
from servers import LAYERED, Served, serve
from sglang_layered_lab.serving import ServerProcess, free_port
from workload import Ask, answers, assert_equal_answers, output_tokens, prompt, read_steps, staggered

pytestmark = [pytest.mark.server, pytest.mark.long]  # scripts/scale-check

PATIENCE_S = 90.0
NUM_LOADED = 16  # requests in flight when a replica is killed: every second one is streamed
NUM_OUTPUTS = 400  # so many that none of them has ended by then
ROUTER = ("--policy", "cache_aware", "--health-check-interval-secs", "1", "--health-failure-threshold", "2")
ROUTER += ("--health-success-threshold", "1", "--worker-startup-check-interval", "1")
ROUTER += ("--cb-timeout-duration-secs", "2", "--prometheus-host", "127.0.0.1")


@dataclass(frozen=True)
class Fleet:
    """A router and its replicas."""

    url: str
    replicas: tuple[Served, ...]

    def health(self) -> dict[str, bool]:
        """What the router thinks of each replica it knows, by URL."""
        workers = httpx.get(f"{self.url}/workers", timeout=30, trust_env=False).json()["workers"]
        return {worker["url"]: worker["is_healthy"] for worker in workers}

    def wait_until(self, healthy: list[bool]) -> None:
        wait(lambda: [self.health().get(each.url) for each in self.replicas] == healthy)


def wait(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, f"not reached in {PATIENCE_S:g} s"
        time.sleep(0.05)


def ids_of(replica: Served) -> set[str]:
    """Ids of the requests that a replica has worked on."""
    ids: set[str] = set()
    for step in read_steps(replica.steps):
        ids.update(step["decode"], step.get("prompt", {}))
    return ids


def start_router(folder: Path, model: Path, urls: list[str]) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--worker-urls", *urls, *ROUTER, "--prometheus-port", str(free_port())]
    return ServerProcess(model, log_path=folder / "router.log", port=port, command=command, grace_s=3)


@pytest.fixture(scope="module")
def fleet(tiny_qwen3_moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    replicas = []
    for name in ("one", "two"):
        steps = folder / name / "steps.jsonl"
        server = serve(folder / name, tiny_qwen3_moe, *LAYERED, "--layered-listeners", f"jsonl={steps}")
        replicas.append(Served(server, steps))
    with ExitStack() as stack:
        for each in replicas:
            stack.callback(each.server.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: each.server.start(), replicas))
        router = stack.enter_context(start_router(folder, tiny_qwen3_moe, [each.url for each in replicas]))
        fleet = Fleet(router.base_url, tuple(replicas))
        fleet.wait_until([True, True])
        yield fleet


@pytest.fixture(scope="module")
def of_one_server(fleet: Fleet) -> list[dict[str, Any]]:
    """Answers of a replica that is asked directly; its cache is empty afterwards."""
    got = answers(fleet.replicas[0].url, staggered(7, tiny_model("qwen3_moe")))
    fleet.replicas[0].server.flush_cache()
    return got


def test_two_replicas_answer_as_one(fleet: Fleet, of_one_server: list[dict[str, Any]]) -> None:
    asks = staggered(7, tiny_model("qwen3_moe"))
    got = answers(fleet.url, asks)
    assert_equal_answers(asks, got, of_one_server)
    ids = {answer["meta_info"]["id"] for answer in got}
    served = [ids_of(each) & ids for each in fleet.replicas]
    assert all(served) and set.union(*served) == ids


def test_prompts_with_one_prefix_go_to_one_replica(fleet: Fleet) -> None:
    families = [prompt(400, 91_000 + family) for family in range(3)]
    asks = [
        Ask(family + prompt(20, 92_000 + 10 * turn + index), 0.0, 4)
        for turn in range(4)
        for index, family in enumerate(families)
    ]
    got = [answers(fleet.url, [ask])[0]["meta_info"] for ask in asks]
    assert all(meta["cached_tokens"] < 10 for meta in got[:3])
    assert all(meta["cached_tokens"] >= 400 for meta in got[3:])


@dataclass
class Sent:
    """One request under load: what the client has seen of it so far."""

    rid: str
    body: dict[str, Any]
    status: int | None = None
    tokens: tuple[int, ...] = ()
    complete: bool = False
    error: str = ""

    async def post(self, client: httpx.AsyncClient) -> None:
        try:
            await (self._stream(client) if self.body.get("stream") else self._plain(client))
        except httpx.HTTPError as error:
            self.error = repr(error)

    async def _plain(self, client: httpx.AsyncClient) -> None:
        reply = await client.post("/generate", json=self.body)
        self.status, self.error = reply.status_code, "" if reply.status_code == 200 else reply.text
        if reply.status_code == 200:
            self.tokens, self.complete = tuple(output_tokens(reply.json())), True

    async def _stream(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/generate", json=self.body) as reply:
            self.status = reply.status_code
            async for line in lines(reply):
                self.complete |= line == b"data: [DONE]"
                if (event := event_of(line)) is not None:
                    self.tokens = tuple(output_tokens(event))


def load() -> list[Sent]:
    asks = [Ask(prompt(60 + 40 * index, 93_000 + index), 0.0, NUM_OUTPUTS) for index in range(NUM_LOADED)]
    rids = [f"loaded-{index}" for index in range(NUM_LOADED)]
    return [
        Sent(rid, ask.body() | {"rid": rid, "stream": index % 2 == 1})
        for index, (rid, ask) in enumerate(zip(rids, asks, strict=True))
    ]


async def kill_under_load(fleet: Fleet, victim: Served, sent: list[Sent]) -> set[str]:
    """Send all; kill the victim once it works on streams and others; return the ids that it had."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=fleet.url, timeout=120, limits=limits, trust_env=False) as client:
        running = [asyncio.create_task(each.post(client)) for each in sent]
        deadline = time.monotonic() + PATIENCE_S
        while not all(each.tokens for each in sent if each.body["stream"]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        os.killpg(victim.server.pid, signal.SIGKILL)
        had = ids_of(victim) & {each.rid for each in sent}
        await asyncio.gather(*running)
    return had


def test_a_killed_replica_costs_its_streams_and_no_other_request(
    fleet: Fleet, of_one_server: list[dict[str, Any]]
) -> None:
    survivor, victim = fleet.replicas
    sent = load()
    had = asyncio.run(kill_under_load(fleet, victim, sent))
    streamed = {each.rid for each in sent if each.body["stream"]}
    assert had & streamed and had - streamed and streamed - had
    broken = {each.rid for each in sent if not each.complete}
    assert broken == had & streamed
    for each in sent:
        assert each.status == 200
        assert ("incomplete chunked read" in each.error) == (each.rid in broken), each.error
    assert had - streamed <= ids_of(survivor)  # sent again by the router
    expected = answers(survivor.url, [Ask(tuple(each.body["input_ids"]), 0.0, NUM_OUTPUTS) for each in sent])
    for each, answer in zip(sent, expected, strict=True):
        assert list(each.tokens) == output_tokens(answer)[: len(each.tokens)]
        assert len(each.tokens) == NUM_OUTPUTS or each.rid in broken
    the_router_drops_and_readmits(fleet, victim, of_one_server)


def the_router_drops_and_readmits(fleet: Fleet, victim: Served, expected: list[dict[str, Any]]) -> None:
    fleet.wait_until([True, False])
    asks = staggered(7, tiny_model("qwen3_moe"))
    assert_equal_answers(asks, answers(fleet.url, asks), expected)
    assert httpx.get(f"{fleet.url}/readiness", trust_env=False).status_code == 200
    victim.server.stop()  # what is left of it
    before = ids_of(victim)
    victim.server.start()
    fleet.wait_until([True, True])
    assert_equal_answers(asks, answers(fleet.url, asks), expected)
    assert ids_of(victim) - before


def no_joule_is_counted_twice(url: str) -> None:
    [joules] = series(url, "energy_joules_total")
    assert (joules["dp_rank"], joules["device"]) == ("0", "replayed")
    prompts = [each for each in series(url, "tokens_for_energy_total") if each["kind"] == "prompt"]
    assert {each["dp_rank"]: each["value"] > 0 for each in prompts} == {"0": True, "1": True}
    assert sorted("devices" in replica["energy"] for replica in state(url)) == [False, True]


def test_two_data_parallel_replicas_answer_as_one(
    tiny_qwen3_moe: Path, of_one_server: list[dict[str, Any]], tmp_path: Path
) -> None:
    flags = ["--dp-size", "2", "--layered-listeners", f"jsonl={tmp_path}/steps-{{dp}}.jsonl"]
    asks = staggered(7, tiny_model("qwen3_moe"))
    env = replayed_energy(tmp_path)
    with serve(tmp_path, tiny_qwen3_moe, *LAYERED, *MEASURING, *flags, env=env) as server:
        got = answers(server.base_url, asks)
        no_joule_is_counted_twice(server.base_url)
    assert_equal_answers(asks, got, of_one_server)
    assert {answer["meta_info"]["dp_rank"] for answer in got} == {0, 1}
    for rank in (0, 1):
        steps = read_steps(tmp_path / f"steps-{rank}.jsonl")
        assert any(step["kind"] == "layered" for step in steps)
