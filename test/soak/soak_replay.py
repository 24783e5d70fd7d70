"""What SGLang as released answers to the soak's prompts: each alone and, where in doubt, in company.

Greedy float32 output can depend on the shape of a batch: rounding decides between two equally good tokens or
experts. Three guards keep that apart from a wrong answer: tokens after a close second are not compared, a
prompt that was answered differently is asked again in batches of several sizes, and if that does not explain
it, the model is asked what it says when ties between experts fall the other way (`ties`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from soak_asks import Outcome, generate_body

Prompt = tuple[int, ...]
TIE_LOGPROB = 1e-4
COMPANY_SIZES = (2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Expected:
    """The quiet answer to a prompt; its first `num_decided` tokens had no close second.

    `in_company` holds other answers that SGLang as released gives to the same prompt in a larger batch,
    `after_ties` those of the model when ties between experts fall the other way.
    """

    tokens: tuple[int, ...]
    num_decided: int
    in_company: frozenset[tuple[int, ...]] = frozenset()
    after_ties: frozenset[tuple[int, ...]] = frozenset()

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether the tokens are the start of an answer of the release."""
        start = tuple(tokens)
        if start[: self.num_decided] == self.tokens[: min(len(start), self.num_decided)]:
            return len(start) <= len(self.tokens)
        return any(start == answer[: len(start)] for answer in self.in_company | self.after_ties)


def longest_outputs(outcomes: Iterable[Outcome]) -> dict[Prompt, int]:
    """Each prompt that was asked, a turn with all that was said before it, and the longest output wanted."""
    wanted: dict[Prompt, int] = {}
    for outcome in outcomes:
        wanted[outcome.ask.prompt] = max(wanted.get(outcome.ask.prompt, 0), outcome.ask.num_outputs)
    return wanted


def replay(base_url: str, wanted: Mapping[Prompt, int]) -> dict[Prompt, Expected]:
    """Ask a quiet server for every prompt once, one after another, with the longest output wanted."""
    expected = {}
    with httpx.Client(base_url=base_url, timeout=120, trust_env=False) as client:
        for prompt, num_outputs in wanted.items():
            body = generate_body(prompt, num_outputs) | {"return_logprob": True, "top_logprobs_num": 2}
            expected[prompt] = _expected(client.post("/generate", json=body).raise_for_status().json())
    return expected


def _expected(answer: dict[str, Any]) -> Expected:
    gaps = [first[0] - second[0] for first, second in answer["meta_info"]["output_top_logprobs"]]
    ties = [index for index, gap in enumerate(gaps) if gap < TIE_LOGPROB]
    return Expected(tuple(answer["output_ids"]), ties[0] if ties else len(gaps))


def ask_again(
    base_url: str,
    wanted: Mapping[Prompt, int],
    expected: Mapping[Prompt, Expected],
    doubtful: Iterable[Prompt],
) -> dict[Prompt, Expected]:
    """Add the answers that the doubtful prompts get in larger batches."""
    known = dict(expected)
    for prompt in sorted(set(doubtful)):
        known[prompt] = replace(known[prompt], in_company=asyncio.run(_in_company(base_url, wanted, prompt)))
    return known


async def _in_company(base_url: str, wanted: Mapping[Prompt, int], prompt: Prompt) -> frozenset[Prompt]:
    others = sorted((each for each in wanted if each != prompt), key=len)
    answers = set()
    async with httpx.AsyncClient(base_url=base_url, timeout=120, trust_env=False) as client:
        for size in COMPANY_SIZES:
            bodies = [generate_body(each, wanted[prompt]) for each in (prompt, *others[: size - 1])]
            replies = await asyncio.gather(*(client.post("/generate", json=body) for body in bodies))
            answers.add(tuple(replies[0].raise_for_status().json()["output_ids"]))
    return frozenset(answers)
