"""The section [workload] of a spec: what requests hold. Nothing is read or drawn here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sglang_layered_lab.bench.lengths_fit import Lognormal
from sglang_layered_lab.bench.spec_errors import SpecError, bad_choice
from sglang_layered_lab.bench.spec_keys import (
    MOST_ID,
    Checked,
    Key,
    as_factor,
    as_seed,
    count_of,
    in_tokens,
    plain,
)

FIELDS_OF = {
    "lognormal": ("mean_tokens", "p50_tokens", "p90_tokens", "min_tokens", "max_tokens"),
    "uniform": ("min_tokens", "max_tokens"),
    "fixed": ("tokens",),
}
ORDERS = ("random", "file")
INPUTS = ("ids", "text")


OF_FILES = {
    "prompt_column": "num_prefill_tokens",
    "output_column": "num_decode_tokens",
    "order": "random",
    "prompt_scale": 1.0,
    "output_scale": 1.0,
}


@dataclass(frozen=True, slots=True)
class DistributionSpec(Checked):
    """Lengths of prompts, or of outputs, in tokens. Limits are included.

    A lognormal is fitted from two of its figures, then cut to the limits: what is drawn has other figures the
    more the limits cut off.
    """

    distribution: Annotated[str, plain(f"one of {', '.join(FIELDS_OF)}")]
    mean_tokens: Annotated[float | None, in_tokens("of a lognormal, before the limits")] = None
    p50_tokens: Annotated[float | None, in_tokens("of a lognormal, before the limits")] = None
    p90_tokens: Annotated[float | None, in_tokens("of a lognormal, before the limits")] = None
    tokens: Annotated[int | None, in_tokens("of a fixed length")] = None
    min_tokens: Annotated[int | None, in_tokens("the least that is drawn")] = None
    max_tokens: Annotated[int | None, in_tokens("the most that is drawn")] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        yield from bad_choice("distribution", self.distribution, FIELDS_OF)
        if self.distribution not in FIELDS_OF:
            return
        used = FIELDS_OF[self.distribution]
        for name in self.__slots__[1:]:
            given = getattr(self, name) is not None
            if given and name not in used:
                yield SpecError(
                    (name,), f"{self.distribution!r} does not use it; remove it (it uses {', '.join(used)})"
                )
            if not given and name in used and self.distribution != "lognormal":
                yield SpecError((name,), f"is missing; {self.distribution!r} needs it")
        if self.max_tokens is not None and self.max_tokens < (self.min_tokens or 1):
            yield SpecError(("max_tokens",), f"{self.max_tokens} is below min_tokens; give more")
        if self.distribution == "lognormal":
            try:
                self.lognormal()
            except SpecError as error:
                yield error

    def lognormal(self) -> Lognormal:
        """The fitted lognormal, before the limits."""
        try:
            return Lognormal.fit(mean=self.mean_tokens, p50=self.p50_tokens, p90=self.p90_tokens)
        except ValueError as error:
            raise SpecError(("distribution",), f"'lognormal' cannot be fitted: {error}") from error


@dataclass(frozen=True, slots=True)
class LengthsSpec(Checked):
    """Lengths from a file's rows, or from two distributions."""

    file: Annotated[
        str | None, plain("CSV with a header, or .jsonl; a relative path starts at the spec's folder")
    ] = None
    prompt_column: Annotated[str, plain("of the file")] = "num_prefill_tokens"
    output_column: Annotated[str, plain("of the file")] = "num_decode_tokens"
    order: Annotated[
        str, plain("random: rows drawn with replacement; file: row after row, from the top again")
    ] = "random"
    prompt_scale: Annotated[
        float, as_factor("multiplies the file's prompt lengths; at least 1 token is left")
    ] = 1.0
    output_scale: Annotated[float, as_factor("multiplies the file's output lengths")] = 1.0
    prompt: Annotated[DistributionSpec | None, plain("without a file")] = None
    output: Annotated[DistributionSpec | None, plain("without a file")] = None
    max_total_tokens: Annotated[
        int | None,
        in_tokens(
            "of prompt and output: longer rows, after scaling, are left out; longer draws drawn again",
            least=2,
        ),
    ] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        yield from bad_choice("order", self.order, ORDERS)
        for name in ("prompt", "output"):
            given = getattr(self, name) is not None
            if given and self.file is not None:
                yield SpecError((name,), "lengths come from the file; remove it or file")
            if not given and self.file is None:
                yield SpecError((name,), "is missing; give prompt and output distributions, or a file")
        if self.file is None:
            for name, default in OF_FILES.items():
                if getattr(self, name) != default:
                    yield SpecError((name,), "only lengths from a file use it; remove it")


@dataclass(frozen=True, slots=True)
class PrefixSpec(Checked):
    """Prompts that begin alike. A prompt keeps its length: the prefix stands in place of its first tokens.

    A prompt that is not longer than the prefix begins with as much of it as leaves one token of its own.
    """

    num_prefixes: Annotated[int, count_of("prefixes", "how many there are")]
    prefix_tokens: Annotated[int, in_tokens("of each")]
    share: Annotated[
        float,
        Key(
            "a part",
            "of the requests, that begins with one of the prefixes, each as likely",
            0,
            most=1,
        ),
    ] = 1.0


@dataclass(frozen=True, slots=True)
class WorkloadSpec(Checked):
    """What requests hold."""

    lengths: Annotated[LengthsSpec, plain("of prompts and outputs")]
    prefixes: Annotated[PrefixSpec | None, plain("prompts that begin alike")] = None
    inputs: Annotated[str, plain("ids: random token ids; text: random words of the model's tokenizer")] = (
        "ids"
    )
    vocab: Annotated[
        tuple[int, int] | None,
        Key(
            "a token id",
            "first id and id after the last; absent: from 1/8 to 7/8 of the model's. Needed with server.url",
            least=0,
            most=MOST_ID,
        ),
    ] = None
    seed: Annotated[int | None, as_seed("of lengths and contents; absent: run.seed")] = None
    topics: Annotated[
        bool, plain("each prompt stays in one of the topics of a model with calibrated routers")
    ] = False

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        yield from bad_choice("inputs", self.inputs, INPUTS)
        if self.vocab is not None and not self.vocab[0] < self.vocab[1]:
            yield SpecError(("vocab",), f"{list(self.vocab)} is empty; give [first id, id after the last]")
        if self.topics and (self.inputs != "ids" or self.vocab is not None):
            yield SpecError(("topics",), "a topic is a range of token ids; use inputs = 'ids' without vocab")
