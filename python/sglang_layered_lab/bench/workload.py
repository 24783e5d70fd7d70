"""What requests hold: sizes and prompts. Each request is drawn from streams of its own.

So request i of a repetition is the same whatever the number of requests, the order in which they are asked
for, the arrivals and the rate. Other repetitions have other prompts, so no prefix cache carries over.
"""

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


@dataclass(frozen=True, slots=True)
class RequestContent:
    """One request; `prompt` is token ids or text. `prompt_tokens` of a text is what the tokenizer counted."""

    index: int
    prompt: Tokens | str
    prompt_tokens: int
    output_tokens: int
    prefix: int | None  # which shared prefix it begins with


@dataclass(frozen=True, slots=True)
class Server:
    """A server to load: its URL, and of its model what the workload needs. `topics` are ranges of ids."""

    url: str
    vocab_size: int
    tokenizer: Tokenizer | None = None
    topics: tuple[tuple[int, int], ...] = ()


class Workload:
    """Requests of one repetition of a spec, for the model of a server.

    Raises:
        SpecError: the model has not the asked token ids, topics or tokenizer, or no words to make text of.
    """

    def __init__(self, spec: BenchSpec, lengths: LengthSource, server: Server, repetition: int = 0) -> None:
        asked = spec.workload
        self._words: Words | None = None  # none: prompts are token ids, else bounds are of their indices
        self._topics = server.topics if asked.topics else ()  # one of them a prompt; none: bounds
        self._lengths, self._prefixes = lengths, asked.prefixes
        self._seed, self._repetition = spec.workload_seed, repetition
        # Both ends of the vocabulary are left out: that is where tokenizers keep their special tokens.
        self._bounds = asked.vocab or (server.vocab_size // 8, server.vocab_size * 7 // 8)
        if self._bounds[1] > server.vocab_size:
            problem = f"the model has {server.vocab_size} token ids; stay below that"
            raise SpecError("workload.vocab", problem)
        if asked.topics and not server.topics:
            raise SpecError("workload.topics", "the model has none; calibrate its routers, or remove it")
        if asked.inputs == "text":
            if server.tokenizer is None:
                raise SpecError("workload.inputs", "'text' needs the model's tokenizer; use 'ids'")
            self._words = Words.of(server.tokenizer, *self._bounds)
            self._bounds = (0, len(self._words.words))

    def request(self, index: int) -> RequestContent:
        """Draw request `index`."""
        size = size_of(self._lengths, self._seed, self._repetition, index)
        prefix = prefix_of(self._prefixes, self._seed, self._repetition, index)
        shared: Tokens = ()
        own = self._drawn(Stream.CONTENT, index, size.prompt_tokens)
        if prefix is not None and self._prefixes is not None:
            num_shared = shared_tokens(size.prompt_tokens, self._prefixes.prefix_tokens)
            shared = self._drawn(Stream.PREFIX_CONTENT, prefix, self._prefixes.prefix_tokens)[:num_shared]
            own = own[num_shared:]
        prompt: Tokens | str = shared + own
        prompt_tokens = size.prompt_tokens
        if self._words is not None:
            prompt, prompt_tokens = self._words.text_of(shared, own, size.prompt_tokens)
        return RequestContent(index, prompt, prompt_tokens, size.output_tokens, prefix)

    def background(self, index: int, num_tokens: int) -> Tokens:
        """Prompt of a stream that decodes beside the requests."""
        return self._drawn(Stream.BACKGROUND, index, num_tokens)

    def _drawn(self, stream: Stream, index: int, number: int) -> Tokens:
        draws = generator(self._seed, stream, self._repetition, index)
        bounds = self._bounds
        if self._topics:
            topic = generator(self._seed, Stream.TOPIC, self._repetition, int(stream), index)
            bounds = self._topics[topic.integers(len(self._topics))]
        return tuple(draws.integers(*bounds, number).tolist())


def size_of(lengths: LengthSource, seed: int, repetition: int, index: int) -> RequestSize:
    """Size of a request, without its content."""
    return lengths.size_of(index, generator(seed, Stream.LENGTHS, repetition, index))


def sizes_of(
    spec: BenchSpec, lengths: LengthSource, repetition: int, num_requests: int
) -> tuple[RequestSize, ...]:
    """Sizes of a repetition's requests.

    Raises:
        SpecError: the prompts together are too long to be kept in memory.
    """
    sizes: list[RequestSize] = []
    left_tokens = MOST_PROMPT_TOKENS
    for index in range(num_requests):
        sizes.append(size_of(lengths, spec.workload_seed, repetition, index))
        left_tokens -= sizes[-1].prompt_tokens
        if left_tokens < 0:
            key = "duration_s" if spec.load.num_requests is None else "num_requests"
            long = f"the prompts of a repetition are longer than {MOST_PROMPT_TOKENS:,} tokens together"
            raise SpecError(f"load.{key}", f"{long}; send fewer, or shorter ones")
    return tuple(sizes)


def prefix_of(prefixes: PrefixSpec | None, seed: int, repetition: int, index: int) -> int | None:
    """Which shared prefix a request begins with, None for a request that shares nothing."""
    if prefixes is None:
        return None
    draws = generator(seed, Stream.PREFIX_CHOICE, repetition, index)
    return int(draws.integers(prefixes.num_prefixes)) if draws.random() < prefixes.share else None


def shared_tokens(prompt_tokens: int, prefix_tokens: int) -> int:
    """How many tokens of a prompt are its prefix's: at least one token is its own."""
    return min(prefix_tokens, prompt_tokens - 1)
