"""What requests hold: sizes and prompts. Each request is drawn from streams of its own.

So request i of a repetition is the same whatever the number of requests, the order in which they are asked
for, the arrivals and the rate. Other repetitions have other prompts, so no prefix cache carries over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sglang_layered_lab.bench.lengths import LengthSource, RequestSize
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.spec_load import PrefixSpec
from sglang_layered_lab.bench.spec_seeds import Stream, generator
from sglang_layered_lab.bench.workload_text import Tokenizer, Words

Tokens: TypeAlias = tuple[int, ...]


MOST_PROMPT_TOKENS = 200_000_000  # of a repetition: its prompts are kept in memory, about 8 bytes a token


class Room:
    """What the prompts of a repetition may still take."""

    def __init__(self, spec: BenchSpec) -> None:
        self._spec, self._left_tokens = spec, MOST_PROMPT_TOKENS

    def take(self, prompt_tokens: int) -> None:
        """Note one prompt.

        Raises:
            SpecError: all of them together are too long.
        """
        self._left_tokens -= prompt_tokens
        if self._left_tokens < 0:
            key = "duration_s" if self._spec.load.num_requests is None else "num_requests"
            raise SpecError(
                ("load", key),
                f"the prompts of a repetition are longer than {MOST_PROMPT_TOKENS:,} tokens together; send"
                " fewer, or shorter ones",
            )


@dataclass(frozen=True, slots=True)
class RequestContent:
    """One request; `prompt` is token ids or text. `prompt_tokens` of a text is what the tokenizer counted."""

    index: int
    prompt: Tokens | str
    prompt_tokens: int
    output_tokens: int
    prefix: int | None  # which shared prefix it begins with


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one repetition; `of` makes it from a spec."""

    lengths: LengthSource
    prefixes: PrefixSpec | None
    bounds: tuple[int, int]  # half-open range of token ids, or of indices of words
    words: Words | None  # None: prompts are token ids
    seed: int
    repetition: int
    topics: tuple[tuple[int, int], ...] = ()  # ranges of token ids, one of them a prompt; none: bounds

    @classmethod
    def of(
        cls,
        spec: BenchSpec,
        lengths: LengthSource,
        *,
        repetition: int = 0,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        topics: tuple[tuple[int, int], ...] = (),
    ) -> Workload:
        """Make the workload of a spec for a model; `tokenizer` is needed for inputs = "text".

        `topics` are the model's ranges of token ids; a spec uses them that says so.

        Raises:
            SpecError: the model has not the asked token ids, or no words to make text of.
        """
        # Both ends of the vocabulary are left out: that is where tokenizers keep their special tokens.
        bounds = spec.workload.vocab or (vocab_size // 8, vocab_size * 7 // 8)
        if bounds[1] > vocab_size:
            raise SpecError(("workload", "vocab"), f"the model has {vocab_size} token ids; stay below that")
        words = None
        if spec.workload.inputs == "text":
            if tokenizer is None:
                raise SpecError(("workload", "inputs"), "'text' needs the model's tokenizer; use 'ids'")
            words = Words.of(tokenizer, *bounds)
            bounds = (0, len(words.words))
        if not spec.workload.topics:
            topics = ()
        elif not topics:
            raise SpecError(("workload", "topics"), "the model has none; calibrate its routers, or remove it")
        return cls(lengths, spec.workload.prefixes, bounds, words, spec.workload_seed, repetition, topics)

    def request(self, index: int) -> RequestContent:
        """Draw request `index`."""
        size = size_of(self.lengths, self.seed, self.repetition, index)
        prefix = prefix_of(self.prefixes, self.seed, self.repetition, index)
        shared: Tokens = ()
        own = self._drawn(Stream.CONTENT, index, size.prompt_tokens)
        if prefix is not None and self.prefixes is not None:
            num_shared = shared_tokens(size.prompt_tokens, self.prefixes.prefix_tokens)
            shared = self._drawn(Stream.PREFIX_CONTENT, prefix, self.prefixes.prefix_tokens)[:num_shared]
            own = own[num_shared:]
        prompt: Tokens | str = shared + own
        prompt_tokens = size.prompt_tokens
        if self.words is not None:
            prompt, prompt_tokens = self.words.text_of(shared, own, size.prompt_tokens)
        return RequestContent(index, prompt, prompt_tokens, size.output_tokens, prefix)

    def background(self, index: int, num_tokens: int) -> Tokens:
        """Prompt of a stream that decodes beside the requests."""
        return self._drawn(Stream.BACKGROUND, index, num_tokens)

    def _drawn(self, stream: Stream, index: int, number: int) -> Tokens:
        draws = generator(self.seed, stream, self.repetition, index)
        bounds = self.bounds
        if self.topics:
            topic = generator(self.seed, Stream.TOPIC, self.repetition, int(stream), index)
            bounds = self.topics[topic.integers(len(self.topics))]
        return tuple(draws.integers(*bounds, number).tolist())


def size_of(lengths: LengthSource, seed: int, repetition: int, index: int) -> RequestSize:
    """Size of a request, without its content."""
    return lengths.size_of(index, generator(seed, Stream.LENGTHS, repetition, index))


def prefix_of(prefixes: PrefixSpec | None, seed: int, repetition: int, index: int) -> int | None:
    """Which shared prefix a request begins with, None for a request that shares nothing."""
    if prefixes is None:
        return None
    draws = generator(seed, Stream.PREFIX_CHOICE, repetition, index)
    return int(draws.integers(prefixes.num_prefixes)) if draws.random() < prefixes.share else None


def shared_tokens(prompt_tokens: int, prefix_tokens: int) -> int:
    """How many tokens of a prompt are its prefix's: at least one token is its own."""
    return min(prefix_tokens, prompt_tokens - 1)
