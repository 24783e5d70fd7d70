"""Prompts and shared prefixes: what a request holds and what it depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers

from sglang_layered_lab.bench.lengths import load_lengths
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.spec import BenchSpec, RunSpec, ServerSpec, SloSpec
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.spec_load import (
    DistributionSpec,
    LengthsSpec,
    LoadSpec,
    PrefixSpec,
    ShortSpec,
    WorkloadSpec,
)
from sglang_layered_lab.bench.workload import RequestContent, Server, Workload
from sglang_layered_lab.models.tokenizer import train_tokenizer

SAMPLES = Path(__file__).parents[2] / "scripts" / "bench"
UNIFORM = DistributionSpec("uniform", min_tokens=1, max_tokens=300)
LENGTHS = LengthsSpec(prompt=UNIFORM, output=DistributionSpec("fixed", tokens=7))


def spec_of(workload: WorkloadSpec, load: LoadSpec | None = None, seed: int = 0) -> BenchSpec:
    load = load or LoadSpec("poisson", rate_per_s=2.0, num_requests=50)
    return BenchSpec(RunSpec("a", seed=seed), ServerSpec(model="m"), load, workload, SloSpec(), SAMPLES)


def workload_of(workload: WorkloadSpec, *, seed: int = 0, repetition: int = 0, **model: Any) -> Workload:
    lengths = load_lengths(workload.lengths, SAMPLES)
    given_model = {"vocab_size": 800} | model
    return Workload(spec_of(workload, seed=seed), lengths, Server("", **given_model), repetition)


def requests_of(workload: Workload, indices: Sequence[int]) -> list[RequestContent]:
    return [workload.request(index) for index in indices]


def text_free(prompt: tuple[int, ...] | str) -> tuple[int, ...]:
    assert not isinstance(prompt, str)
    return prompt


PREFIXES = PrefixSpec(num_prefixes=3, prefix_tokens=100, share=0.6)


@given(seed=st.integers(0, 2**40), repetition=st.integers(0, 5), order=st.permutations(range(6)))
def test_a_request_depends_on_its_index_alone(seed: int, repetition: int, order: list[int]) -> None:
    spec = WorkloadSpec(LENGTHS, PREFIXES)
    workload = workload_of(spec, seed=seed, repetition=repetition)
    requests = requests_of(workload, order)
    again = workload_of(spec, seed=seed, repetition=repetition)
    assert sorted(requests, key=lambda each: each.index) == requests_of(again, range(6))
    prompts = {each.prompt for each in requests}
    others = [
        workload_of(spec, seed=seed + 1, repetition=repetition),
        workload_of(spec, seed=seed, repetition=6),
    ]
    for other in others:
        assert [each.prompt for each in requests_of(other, range(6))] != [
            each.prompt for each in requests_of(again, range(6))
        ]
    assert len(prompts) == 6 or min(each.prompt_tokens for each in requests) < 4


def test_token_ids_fill_their_range_and_are_as_many_as_asked_for() -> None:
    requests = requests_of(workload_of(WorkloadSpec(LENGTHS)), range(200))
    assert all(len(each.prompt) == each.prompt_tokens for each in requests)
    assert {each.output_tokens for each in requests} == {7}
    seen = Counter(token for each in requests for token in text_free(each.prompt))
    assert set(seen) == set(range(100, 700))  # 1/8 to 7/8 of 800
    assert stats.chisquare(list(seen.values())).pvalue > 0.01
    given_range = workload_of(WorkloadSpec(LENGTHS, vocab=(5, 8)))
    assert {token for each in requests_of(given_range, range(9)) for token in text_free(each.prompt)} == {
        5,
        6,
        7,
    }


def test_the_workload_seed_wins_over_the_run_seed() -> None:
    seeded = WorkloadSpec(LENGTHS, seed=4)
    assert requests_of(workload_of(seeded, seed=1), range(3)) == requests_of(
        workload_of(seeded, seed=2), range(3)
    )
    assert requests_of(workload_of(seeded), range(3)) == requests_of(
        workload_of(WorkloadSpec(LENGTHS), seed=4), range(3)
    )


def test_prompts_share_their_prefixes_and_nothing_else() -> None:
    requests = requests_of(workload_of(WorkloadSpec(LENGTHS, PREFIXES)), range(600))
    plain = requests_of(workload_of(WorkloadSpec(LENGTHS)), range(600))
    for request, bare in zip(requests, plain, strict=True):
        assert (request.prompt_tokens, request.output_tokens) == (bare.prompt_tokens, bare.output_tokens)
        num_shared = 0 if request.prefix is None else min(100, request.prompt_tokens - 1)
        assert text_free(request.prompt)[num_shared:] == text_free(bare.prompt)[num_shared:]
        assert len(request.prompt) == request.prompt_tokens
    by_prefix = {prefix: [each for each in requests if each.prefix == prefix] for prefix in (0, 1, 2)}
    starts = set()
    for group in by_prefix.values():
        longest = max((text_free(each.prompt)[:100] for each in group), key=len)
        starts.add(longest)
        for each in group:
            num_shared = min(100, each.prompt_tokens - 1)
            assert text_free(each.prompt)[:num_shared] == longest[:num_shared]
    assert len(starts) == 3
    counts = [len(group) for group in by_prefix.values()]
    assert stats.binomtest(sum(counts), 600, 0.6).pvalue > 0.01
    assert stats.chisquare(counts).pvalue > 0.01


class Adapter:
    """A tokenizer with the two methods that are needed, under the names of Hugging Face."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids)


@pytest.fixture(scope="module")
def byte_level() -> Adapter:
    return Adapter(train_tokenizer(1024))


def word_level() -> Adapter:
    words = ["[UNK]", *(f"{first}{second}" for first in "abcde" for second in "vwxyz")]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Adapter(tokenizer)


def test_short_prompts_name_their_own_limit_and_are_the_same_prompts() -> None:
    server = Server("", 800)
    workload = WorkloadSpec(LENGTHS, vocab=(100, 700))
    spec, named = (spec_of(replace(workload, short=short)) for short in (None, ShortSpec(100, 500.0)))
    spec, named = (replace(each, server=ServerSpec(url="http://127.0.0.1:1")) for each in (spec, named))
    plain, short = (Load.of(each).planned(0, server) for each in (spec, named))
    assert [each.prompt for each in plain] == [each.prompt for each in short]
    assert not any(each.sampling for each in plain)
    limits = {"custom_params": {"slo_ttft_ms": 500.0}}
    assert [dict(each.sampling) for each in short] == [
        limits if len(each.prompt) <= 100 else {} for each in short
    ]


def test_text_has_about_the_tokens_asked_for(byte_level: Adapter) -> None:
    spec = WorkloadSpec(LENGTHS, PREFIXES, inputs="text")
    for tokenizer, vocab_size in ((byte_level, 1024), (word_level(), 26)):
        workload = workload_of(spec, vocab_size=vocab_size, tokenizer=tokenizer)
        asked = requests_of(workload_of(WorkloadSpec(LENGTHS, PREFIXES)), range(40))
        for index in (39, *range(39)):
            request = workload.request(index)
            assert isinstance(request.prompt, str)
            counted = len(tokenizer.encode(request.prompt, add_special_tokens=False))
            assert request.prompt_tokens == counted
            num_own = asked[index].prompt_tokens - (0 if request.prefix is None else 100)
            longest = max(map(len, workload._words.words)) if workload._words and num_own < 20 else 1
            assert 0 <= counted - asked[index].prompt_tokens < longest
            assert (request.prefix, request.output_tokens) == (asked[index].prefix, 7)


def test_text_prompts_share_their_prefixes(byte_level: Adapter) -> None:
    lengths = replace(LENGTHS, prompt=DistributionSpec("fixed", tokens=150))
    spec = WorkloadSpec(lengths, PREFIXES, inputs="text")
    requests = requests_of(workload_of(spec, vocab_size=1024, tokenizer=byte_level), range(30))
    starts = {(each.prefix, " ".join(str(each.prompt).split()[:100])) for each in requests}
    shared = [start for prefix, start in starts if prefix is not None]
    assert len(shared) == 3
    assert len({each.prompt for each in requests}) == 30


def test_what_a_model_cannot_give_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^workload\.vocab: the model has 800 token ids"):
        workload_of(WorkloadSpec(LENGTHS, vocab=(0, 801)))
    with pytest.raises(SpecError, match=r"^workload\.inputs: 'text' needs the model's tokenizer; use 'ids'"):
        workload_of(WorkloadSpec(LENGTHS, inputs="text"))
    few = WorkloadSpec(LENGTHS, inputs="text", vocab=(1, 5))
    with pytest.raises(SpecError, match=r"^workload\.inputs: 'text' needs 8 words .* has 4 among ids 1 to 4"):
        workload_of(few, vocab_size=26, tokenizer=word_level())
