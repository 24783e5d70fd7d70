"""Sends the scenario to a server through the `openai` client and notes when each token arrived.

Knows the HTTP API; knows nothing of modes and computes no metric. SGLang puts the running token count into
every streamed chunk when asked (`continuous_usage_stats`), so tokens are counted by the server: a chunk whose
text is empty, because it ends inside a UTF-8 character, still counts, and one with two tokens counts two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from sglang_layered.errors import QuickstartError
from sglang_layered_lab.bench.trace import Arrival
from sglang_layered_lab.quickstart.metrics import Repetition, Stream
from sglang_layered_lab.quickstart.scenario import MODEL_NAME, Scenario

REPETITION_TIMEOUT_S = 300.0


class TokenStream:
    """One streamed completion and the arrival of its tokens."""

    def __init__(self, client: AsyncOpenAI, prompt: Sequence[int], max_tokens: int) -> None:
        self.sent_s = time.perf_counter()
        self._arrivals: list[Arrival] = []  # on the clock of time.perf_counter
        self._news = asyncio.Event()  # set at every arrival and at the end
        self._task = asyncio.create_task(self._read(client, list(prompt), max_tokens))

    @property
    def num_tokens(self) -> int:
        """How many tokens have arrived."""
        return self._arrivals[-1].num_tokens if self._arrivals else 0

    async def reach(self, num_tokens: int) -> None:
        """Wait until that many tokens have arrived; raise if the stream ends before."""
        while self.num_tokens < num_tokens:
            if self._task.done():
                await self._task  # raises what ended it
                raise QuickstartError(f"a stream ended after {self.num_tokens} of {num_tokens} tokens")
            self._news.clear()
            await self._news.wait()

    async def finish(self) -> None:
        """Read to the end."""
        await self._task

    async def cancel(self) -> None:
        """Drop the connection, which makes the server abort the request."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def arrivals_since(self, zero_s: float) -> Stream:
        """Arrivals with their times counted from `zero_s`."""
        return tuple(Arrival(each.time_s - zero_s, each.num_tokens) for each in self._arrivals)

    async def _read(self, client: AsyncOpenAI, prompt: list[int], max_tokens: int) -> None:
        try:
            chunks = await client.completions.create(
                model=MODEL_NAME,
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=0.0,
                stream=True,
                stream_options={"include_usage": True, "continuous_usage_stats": True},
                extra_body={"ignore_eos": True},
            )
            async with chunks:
                async for chunk in chunks:
                    self._note(chunk.usage.completion_tokens if chunk.usage else self.num_tokens + 1)
        finally:
            asyncio.get_running_loop().call_soon(self._news.set)  # once the task counts as done

    def _note(self, num_tokens: int) -> None:
        if num_tokens > self.num_tokens:
            self._arrivals.append(Arrival(time.perf_counter(), num_tokens))
            self._news.set()


async def play(client: AsyncOpenAI, scenario: Scenario, repetition: int, vocab_size: int) -> Repetition:
    """Start the running streams, send the long prompt among them, end them some tokens later."""
    prompts = scenario.running_prompts(repetition, vocab_size)
    running = [TokenStream(client, prompt, scenario.running_max_tokens) for prompt in prompts]
    streams = list(running)
    try:
        for stream in running:
            await stream.reach(scenario.tokens_before)
        long = TokenStream(client, scenario.long_prompt(repetition, vocab_size), scenario.long_max_tokens)
        streams.append(long)
        await long.reach(1)
        for stream, num_tokens in [(stream, stream.num_tokens) for stream in running]:
            await stream.reach(num_tokens + scenario.tokens_after)
        await long.finish()
    finally:
        for stream in streams:
            await stream.cancel()
    if long.num_tokens != scenario.long_max_tokens:
        raise QuickstartError(f"the long prompt got {long.num_tokens} of {scenario.long_max_tokens} tokens")
    zero_s = long.sent_s
    return Repetition(long.arrivals_since(zero_s), tuple(each.arrivals_since(zero_s) for each in running))


def play_once(base_url: str, scenario: Scenario, repetition: int, vocab_size: int) -> Repetition:
    """Connect, play one repetition, disconnect; whatever goes wrong becomes a QuickstartError."""

    async def connected() -> Repetition:
        # Proxy settings are ignored: the server is on loopback. No retries: they would hide a lost request.
        async with AsyncOpenAI(
            base_url=f"{base_url}/v1",
            api_key="none",
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(trust_env=False),
        ) as client:
            playing = play(client, scenario, repetition, vocab_size)
            return await asyncio.wait_for(playing, REPETITION_TIMEOUT_S)

    try:
        return asyncio.run(connected())
    except asyncio.TimeoutError as error:
        raise QuickstartError(f"no end of repetition {repetition} in {REPETITION_TIMEOUT_S:g} s") from error
    except (OpenAIError, httpx.HTTPError) as error:
        raise QuickstartError(f"the server failed a request: {error}") from error
