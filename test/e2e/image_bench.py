"""Chats with images beside streams of text: the worst gap between the streams' tokens, layered and stock.

Servers of one model take turns on the same chats; a gap holds whatever the encoder made the streams wait.
Then chats are aborted while their images pass the encoder. Run by `scripts/bench-images`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "models"), str(TESTS)]

import click  # noqa: E402
import httpx  # noqa: E402
from event_lines import events  # noqa: E402
from event_tail import EventTail  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tiny_models import MODELS  # noqa: E402

from image_chats import NUM_PICTURES, PIXELS, pictures_chat  # noqa: E402
from image_model import study_recipe  # noqa: E402
from servers import COMMON, serve  # noqa: E402
from sglang_layered_lab.models.make import make_from_recipe  # noqa: E402
from sglang_layered_lab.models.recipe import FamilyRecipe  # noqa: E402
from sglang_layered_lab.serving import end_servers_on_signals  # noqa: E402
from study_record import write_record  # noqa: E402
from workload import prompt  # noqa: E402

NUM_STREAMS, STREAM_TOKENS, FIRST_TOKENS = 4, 64, 5
MODES: Mapping[str, tuple[str, ...]] = {
    "layered": ("--prefill-mode", "layered", "--layered-group-tokens", "128"),
    "stock, whole prompts": (),
    "stock, mixed chunks of 256": ("--chunked-prefill-size", "256", "--enable-mixed-chunk"),
}
STOCK = "stock, whole prompts"
# SGLang compiles the encoder's rotary embedding at the first image: half a minute on two cores.
# One thread computes: the other core is for the client, and for the processes that handle text and pixels.
ENV = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
PATIENCE_S = 60.0


@dataclass
class Seen:
    """One chat beside the streams; times are seconds since it was sent."""

    mode: str
    seed: int
    ttft_s: float
    end_s: float
    answer: str
    arrivals_s: list[list[float]]  # tokens of each stream
    steps: list[tuple[str, float]] = field(default_factory=list)  # kind and seconds, where a listener hears

    @property
    def worst_gap_s(self) -> float:
        """The longest that a stream waited for a token before the chat was answered."""
        return max(
            later - earlier
            for stream in self.arrivals_s
            for earlier, later in pairwise(stream)
            if later >= 0 and earlier <= self.end_s
        )

    def longest_s(self, kind: str) -> float:
        return max((duration_s for each, duration_s in self.steps if each == kind), default=0.0)


@dataclass
class Aborted:
    """One chat that was aborted: its steps, and what the server held afterwards with nothing to do."""

    seed: int
    encoder_steps: int
    layered_steps: int
    held: dict[str, int]
    is_answered_again: bool  # as by the stock server

    @property
    def fault(self) -> str | None:
        if any(self.held.values()):
            return f"chat {self.seed} is aborted, and the server holds {self.held}"
        return None if self.is_answered_again else f"chat {self.seed} has another answer after its abort"


async def decode(client: httpx.AsyncClient, seed: int, arrivals: list[float]) -> None:
    """A stream of text; the time of each token."""
    body = {
        "input_ids": list(prompt(STREAM_TOKENS, seed)),
        "sampling_params": {"temperature": 0, "max_new_tokens": 6000, "ignore_eos": True},
        "stream": True,
    }
    async with client.stream("POST", "/generate", json=body) as reply:
        async for _ in events(reply):
            arrivals.append(time.monotonic())


@asynccontextmanager
async def streams(url: str) -> AsyncIterator[tuple[httpx.AsyncClient, list[list[float]]]]:
    """Streams that all have tokens; afterwards they hang up, and the server keeps nothing of them."""
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        arrivals: list[list[float]] = [[] for _ in range(NUM_STREAMS)]
        tasks = [asyncio.create_task(decode(client, 10 + index, each)) for index, each in enumerate(arrivals)]
        while min(map(len, arrivals)) < FIRST_TOKENS:
            await asyncio.sleep(0.02)
        yield client, arrivals
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await held_when_idle(client)


async def held_when_idle(client: httpx.AsyncClient) -> dict[str, int]:
    """Flush the cache of a server that has nothing to do; gives what it holds all the same."""
    (await client.post("/flush_cache", params={"timeout": PATIENCE_S})).raise_for_status()
    found = (await client.get("/v1/loads")).json()["loads"][0]
    return {name: found[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, str]:
    """When the first token came, and the answer."""
    first_s, answer = None, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for event in events(reply):
            first_s = time.monotonic() if first_s is None else first_s
            for choice in event.get("choices", ()):
                answer += choice["delta"].get("content") or ""
        reply.raise_for_status()
    assert first_s is not None, "the chat has no answer"
    return first_s, answer


async def measure(url: str, mode: str, seed: int, body: dict[str, Any], tail: EventTail | None) -> Seen:
    """One chat beside the streams of one server, whose events are in `tail`."""
    async with streams(url) as (client, arrivals):
        _ = list(tail.new()) if tail else []
        sent = time.monotonic()
        first, answer = await ask(client, body)
        end = time.monotonic()
        await go_on(arrivals)
    events = [] if tail is None else [event for event in tail.new() if event["event"] == "step_done"]
    return Seen(
        mode,
        seed,
        first - sent,
        end - sent,
        answer,
        [[arrival - sent for arrival in each] for each in arrivals],
        [(event["kind"], event["duration_s"]) for event in events if event["start_s"] <= end],
    )


async def go_on(arrivals: list[list[float]]) -> None:
    """Return when every stream has got some more tokens."""
    enough = [len(each) + FIRST_TOKENS for each in arrivals]
    async with asyncio.timeout(PATIENCE_S):
        while any(len(each) < length for each, length in zip(arrivals, enough, strict=True)):
            await asyncio.sleep(0.02)


async def abort_in_encoder(
    url: str, stock_url: str, seed: int, body: dict[str, Any], tail: EventTail
) -> Aborted:
    """Abort a chat beside streams once its first images have passed the encoder, then ask it again."""
    heard: list[dict[str, Any]] = []
    # A name of its own: two seconds after a stream's end SGLang aborts whoever has its name then.
    named = body | {"rid": f"aborted-{seed}"}
    async with streams(url) as (client, arrivals):
        _ = list(tail.new())
        asked = asyncio.create_task(ask(client, named))
        while not asked.done() and not steps_of(heard, "encoder"):
            await asyncio.sleep(0.005)
            heard += tail.new()
        (await client.post("/abort_request", json={"rid": named["rid"]})).raise_for_status()
        await asyncio.gather(asked, return_exceptions=True)
        await go_on(arrivals)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        held = await held_when_idle(client)
    heard += tail.new()
    async with streams(url) as (client, _):
        _, again = await ask(client, body)
    async with httpx.AsyncClient(base_url=stock_url, timeout=PATIENCE_S, trust_env=False) as client:
        _, stock = await ask(client, body)
    return Aborted(seed, steps_of(heard, "encoder"), steps_of(heard, "layered"), held, again == stock)


def steps_of(heard: list[dict[str, Any]], kind: str) -> int:
    return sum(event["event"] == "step_done" and event["kind"] == kind for event in heard)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Each server gets one chat in each.")
@click.option("--aborts", default=4, show_default=True, help="Chats that are aborted in the encoder.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the record goes.")
def main(rounds: int, aborts: int, out: Path | None) -> None:
    """Measure chats with images beside streams on each server, in turns, and print the table.

    Fails where servers give other answers, or one keeps something of an aborted chat.
    """
    end_servers_on_signals()
    recipe, model = study_recipe(), MODELS / "study-images"
    make_from_recipe(recipe, model, force=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        trace = Path(folder) / "steps.jsonl"
        tails = {"layered": EventTail(trace)}
        urls = {}
        for mode, flags in MODES.items():
            heard = ("--layered-listeners", f"jsonl={trace}") if mode in tails else ()
            server = serve(Path(folder) / mode, model, *flags, *heard, env=ENV)
            urls[mode] = running.enter_context(server).base_url
        rows = in_turns(urls, tails, rounds)
        left = [
            asyncio.run(
                abort_in_encoder(urls["layered"], urls[STOCK], seed, pictures_chat(seed), tails["layered"])
            )
            for seed in range(rounds + 1, rounds + 1 + aborts)
        ]
    Console(width=110).print(table(rows), aborted(left))
    if out is not None:
        write_record(out, spec(recipe) | {"aborted": [asdict(each) for each in left]}, rows)
    faults = [*differing(rows), *filter(None, (each.fault for each in left))]
    if faults:
        raise click.ClickException("; ".join(faults))


def in_turns(urls: Mapping[str, str], tails: Mapping[str, EventTail], rounds: int) -> list[Seen]:
    """All rows; a first round, which is not among them, makes every server warm."""
    rows = []
    for turn in range(rounds + 1):
        body, modes = pictures_chat(turn), deque(urls)
        modes.rotate(turn)  # none always comes first
        for mode in modes:
            seen = asyncio.run(measure(urls[mode], mode, turn, body, tails.get(mode)))
            rows += [seen] if turn else []
    return rows


def differing(rows: Sequence[Seen]) -> list[str]:
    """Chats to which not all servers gave the same answer."""
    answers: dict[int, set[str]] = {}
    for row in rows:
        answers.setdefault(row.seed, set()).add(row.answer)
    return [f"chat {seed} has {len(each)} answers" for seed, each in answers.items() if len(each) > 1]


def table(rows: Sequence[Seen]) -> Table:
    """Medians over the rounds, and the lowest and highest."""
    shown = Table("server", "TTFT s", "worst gap ms", "longest encoder step ms", "longest layered step ms")
    for mode in sorted({row.mode for row in rows}):
        mine = [row for row in rows if row.mode == mode]
        cells = [spread([row.ttft_s for row in mine], 1, 2)]
        cells.append(spread([row.worst_gap_s for row in mine], 1e3, 0))
        for kind in ("encoder", "layered"):
            longest = [row.longest_s(kind) for row in mine]
            cells.append(spread(longest, 1e3, 0) if any(longest) else "")
        shown.add_row(mode, *cells)
    return shown


def spread(values: Sequence[float], unit: float, digits: int) -> str:
    low, middle, high = (f"{unit * pick(values):.{digits}f}" for pick in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def aborted(left: Sequence[Aborted]) -> str:
    in_encoder = sum(each.layered_steps == 0 and each.encoder_steps < NUM_PICTURES for each in left)
    return f"{len(left)} chats aborted, {in_encoder} of them in the encoder"


def spec(recipe: FamilyRecipe) -> dict[str, Any]:
    return {
        "recipe": recipe.as_dict(),
        "modes": MODES,
        "flags": COMMON,
        "env": ENV,
        "num_streams": NUM_STREAMS,
        "stream_tokens": STREAM_TOKENS,
        "num_pictures": NUM_PICTURES,
        "pixels": PIXELS,
    }


if __name__ == "__main__":
    main()
