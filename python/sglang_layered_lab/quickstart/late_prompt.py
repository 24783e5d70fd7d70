"""How long a short prompt waits behind a long one: `scripts/bench-late-prompt`.

One layered server plays three modes in turns, switched through `/set_internal_state`, so that drift of the
machine hits all of them alike. Four conversations run; a long prompt arrives; a moment later a short one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import click
import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from rich.console import Console
from rich.table import Table

from sglang_layered.writable import check_writable
from sglang_layered_lab.quickstart.client import TokenStream
from sglang_layered_lab.quickstart.record import installed_versions, this_machine
from sglang_layered_lab.quickstart.run import ensure_model, vocabulary_size
from sglang_layered_lab.quickstart.scenario import Scenario
from sglang_layered_lab.serving import ServerProcess

SHORT_TOKENS = 32
LATE_S = 0.1
MODES: dict[str, dict[str, int]] = {
    "whole": {"layered_prefill": 0, "layered_cohort_tokens": 4096},
    "chunks of 512": {"layered_prefill": 0, "layered_cohort_tokens": 512},
    "layered": {"layered_prefill": 1, "layered_cohort_tokens": 4096},
}


async def play(base_url: str, scenario: Scenario, repetition: int, vocab_size: int) -> dict[str, float]:
    """Seconds to the first token: of a short prompt alone, of a long one, of a short one behind it."""
    http = DefaultAsyncHttpxClient(trust_env=False)
    async with AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        prompts = scenario.running_prompts(repetition, vocab_size)
        streams = [TokenStream(client, prompt, scenario.running_max_tokens) for prompt in prompts]
        try:
            for stream in streams:
                await stream.reach(scenario.tokens_before)
            long_prompt = scenario.long_prompt(repetition, vocab_size)
            alone = TokenStream(client, long_prompt[-SHORT_TOKENS:], 2)
            streams.append(alone)
            await alone.finish()
            long = TokenStream(client, long_prompt, 4)
            await asyncio.sleep(LATE_S)
            short = TokenStream(client, long_prompt[-2 * SHORT_TOKENS : -SHORT_TOKENS], 4)
            streams += [long, short]
            await asyncio.gather(long.finish(), short.finish())
        finally:
            for stream in streams:
                await stream.cancel()
    return {"short_alone_s": _ttft(alone), "long_s": _ttft(long), "short_behind_long_s": _ttft(short)}


def _ttft(stream: TokenStream) -> float:
    return stream.arrivals_since(stream.sent_s)[0].time_s


def measure(repetitions: int, out: Path, console: Console) -> dict[str, list[dict[str, float]]]:
    """Every mode's times, repetition by repetition; one more before them is thrown away."""
    scenario = Scenario()
    model = ensure_model(None, console)
    vocab_size = vocabulary_size(model)
    times: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with ServerProcess(model, scenario.server_flags("layered"), log_path=out / "server.log") as server:
        for repetition in range(repetitions + 1):
            for mode, settings in MODES.items():
                _switch(server.base_url, settings)
                seen = asyncio.run(play(server.base_url, scenario, repetition, vocab_size))
                server.flush_cache()
                if repetition > 0:
                    times[mode].append(seen)
    return times


def _switch(base_url: str, settings: dict[str, int]) -> None:
    body = {"server_args": settings}
    reply = httpx.post(f"{base_url}/set_internal_state", json=body, timeout=60, trust_env=False)
    if reply.json() != [True]:
        raise click.ClickException(f"the server did not take {settings}: {reply.text}")


def table(times: dict[str, list[dict[str, float]]]) -> Table:
    """Medians, and how much longer the short prompt took behind the long one."""
    shown = Table("mode", "short alone (s)", "long (s)", "short behind long (s)", "delay (s)", "delay / long")
    for mode, rows in times.items():
        alone, long, behind = (
            statistics.median(row[name] for row in rows)
            for name in ("short_alone_s", "long_s", "short_behind_long_s")
        )
        figures = (alone, long, behind, behind - alone, (behind - alone) / long)
        shown.add_row(mode, *(f"{value:.2f}" for value in figures))
    return shown


@click.command()
@click.option("--repetitions", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/late-prompt"), show_default=True)
def main(repetitions: int, out: Path) -> None:
    """Measure how long a prompt of 32 tokens waits behind one of 2048, in three modes of one server."""
    check_writable(out / "record.json")
    console = Console()
    times = measure(repetitions, out, console)
    record: dict[str, Any] = {
        "spec": {"modes": MODES, "short_tokens": SHORT_TOKENS, "late_s": LATE_S, "repetitions": repetitions},
        "versions": installed_versions(),
        "machine": this_machine(),
        "times": times,
    }
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    console.print(table(times))


if __name__ == "__main__":
    main()
