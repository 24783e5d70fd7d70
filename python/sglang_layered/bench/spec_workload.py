"""The section [workload] of a spec: what requests hold. Nothing is read or drawn here."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered.bench.lengths_fit import Lognormal
from sglang_layered.bench.spec_errors import SpecError, check_above, check_choice

FIELDS_OF = {
    "lognormal": ("mean_tokens", "p50_tokens", "p90_tokens", "min_tokens", "max_tokens"),
    "uniform": ("min_tokens", "max_tokens"),
    "fixed": ("tokens",),
}
ORDERS = ("random", "file")
INPUTS = ("ids", "text")


@dataclass(frozen=True, slots=True)
class DistributionSpec:
    """Lengths of prompts, or of outputs, in tokens. Limits are included.

    A lognormal is fitted from two of its figures, then cut to the limits: what is drawn has other figures the
    more the limits cut off.
    """

    distribution: str  # a key of FIELDS_OF
    mean_tokens: float | None = None
    p50_tokens: float | None = None
    p90_tokens: float | None = None
    tokens: int | None = None  # of a fixed length
    min_tokens: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_choice("distribution", self.distribution, FIELDS_OF)
        used = FIELDS_OF[self.distribution]
        for name in self.__slots__[1:]:
            check_above(name, getattr(self, name), "tokens", least=1)
            if name not in used and getattr(self, name) is not None:
                raise SpecError(
                    (name,), f"{self.distribution!r} does not use it; remove it (it uses {', '.join(used)})"
                )
        if self.distribution != "lognormal":
            for name in used:
                if getattr(self, name) is None:
                    raise SpecError((name,), f"is missing; {self.distribution!r} needs it")
        if self.max_tokens is not None and self.max_tokens < (self.min_tokens or 1):
            raise SpecError(("max_tokens",), f"{self.max_tokens} is below min_tokens; give more")
        if self.distribution == "lognormal":
            self.lognormal()

    def lognormal(self) -> Lognormal:
        """The fitted lognormal, before the limits."""
        try:
            return Lognormal.fit(mean=self.mean_tokens, p50=self.p50_tokens, p90=self.p90_tokens)
        except ValueError as error:
            raise SpecError(("distribution",), f"'lognormal' cannot be fitted: {error}") from error


@dataclass(frozen=True, slots=True)
class LengthsSpec:
    """Lengths from a file's rows, or from two distributions."""

    file: str | None = None  # CSV with a header, or .jsonl; a relative path starts at the spec's folder
    prompt_column: str = "num_prefill_tokens"
    output_column: str = "num_decode_tokens"
    order: str = "random"  # random: rows drawn with replacement; file: row after row, from the top again
    prompt_scale: float = 1.0  # multiplies the file's prompt lengths; at least 1 token is left
    output_scale: float = 1.0
    prompt: DistributionSpec | None = None
    output: DistributionSpec | None = None
    max_total_tokens: int | None = None  # longer rows, after scaling, are left out; longer draws drawn again

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_above("prompt_scale", self.prompt_scale, "a factor")
        check_above("output_scale", self.output_scale, "a factor")
        check_above("max_total_tokens", self.max_total_tokens, "tokens", least=2)
        for name in ("prompt", "output"):
            given = getattr(self, name) is not None
            if given and self.file is not None:
                raise SpecError((name,), "lengths come from the file; remove it or file")
            if not given and self.file is None:
                raise SpecError((name,), "is missing; give prompt and output distributions, or a file")
        if self.file is None:
            self._check_unused()

    def _check_unused(self) -> None:
        plain = {
            "prompt_column": "num_prefill_tokens",
            "output_column": "num_decode_tokens",
            "order": "random",
        }
        for name, default in {**plain, "prompt_scale": 1.0, "output_scale": 1.0}.items():
            if getattr(self, name) != default:
                raise SpecError((name,), "only lengths from a file use it; remove it")


@dataclass(frozen=True, slots=True)
class PrefixSpec:
    """Prompts that begin alike. A prompt keeps its length: the prefix stands in place of its first tokens.

    A prompt that is not longer than the prefix begins with as much of it as leaves one token of its own.
    """

    num_prefixes: int
    prefix_tokens: int
    share: float = 1.0  # part of the requests that begin with one of the prefixes, each as likely

    def __post_init__(self) -> None:
        check_above("num_prefixes", self.num_prefixes, "a number of prefixes", least=1)
        check_above("prefix_tokens", self.prefix_tokens, "tokens", least=1)
        if not 0 <= self.share <= 1:
            raise SpecError(("share",), f"{self.share:g} is out of range; give a part from 0 to 1")


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What requests hold."""

    lengths: LengthsSpec
    prefixes: PrefixSpec | None = None
    inputs: str = "ids"  # ids: random token ids; text: random words of the model's tokenizer
    vocab: tuple[int, int] | None = None  # half-open range of token ids; None: 1/8 to 7/8 of the model's
    seed: int | None = None  # of lengths and contents; None: run.seed
    topics: bool = False  # each prompt stays in one of the topics of a model with calibrated routers

    def __post_init__(self) -> None:
        check_choice("inputs", self.inputs, INPUTS)
        check_above("seed", self.seed, "a whole number", least=0)
        if self.vocab is not None and not 0 <= self.vocab[0] < self.vocab[1]:
            raise SpecError(("vocab",), f"{list(self.vocab)} is empty; give [first id, id after the last]")
        if self.topics and (self.inputs != "ids" or self.vocab is not None):
            raise SpecError(("topics",), "a topic is a range of token ids; use inputs = 'ids' without vocab")
