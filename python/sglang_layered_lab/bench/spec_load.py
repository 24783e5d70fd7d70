"""What a run sends: [load], when requests are sent and which are measured, and [workload], what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Strict

from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.lengths_fit import Lognormal
from sglang_layered_lab.bench.spec_errors import SpecError, fields_of

NEEDS = {
    "poisson": ("rate_per_s",),
    "gamma": ("rate_per_s", "burstiness"),
    "constant": ("rate_per_s",),
    "closed": ("num_clients",),
    "trace": ("trace",),
}
KIND_FIELDS = ("rate_per_s", "burstiness", "num_clients", "trace")


@of.section
class TraceSpec(of.Section):
    """Arrivals to replay: one timestamp a row, in order; the first row is due at 0."""

    file: Annotated[str, "CSV with a header, or .jsonl; relative to the spec's folder"]
    column: Annotated[str, "holds the timestamps"] = "timestamp"
    unit_s: Annotated[of.Seconds, "what one unit of the column is worth: 0.001 for milliseconds"] = 1.0
    speed: Annotated[of.Factor, "2 replays in half the time, so at twice the rate"] = 1.0


@of.section
class BackgroundSpec(of.Section):
    """Streams that decode beside the load from before its zero until its end, and are then broken off."""

    num_streams: Annotated[of.Open, "how many"]
    output_tokens: Annotated[of.Tokens2, "asked of each; more than come while the load runs"]
    prompt_tokens: Annotated[of.Tokens, "of each stream's prompt"] = 64
    tokens_before: Annotated[of.Tokens2, "that each stream has when the load begins"] = 2

    def problems(self) -> Iterator[SpecError]:
        """Give streams that would end before the load begins."""
        if self.tokens_before > self.output_tokens:
            yield SpecError(
                ("tokens_before",), f"{self.tokens_before} are more than output_tokens; give less"
            )


@of.section
class LoadSpec(of.Section):
    """When requests are sent. Open arrivals end at `num_requests` or at `duration_s`, whichever is first.

    In a closed load each client sends its next request when its last one has ended; it ends with the last of
    `num_requests`.
    """

    arrivals: Annotated[str, of.choice(NEEDS), f"one of {', '.join(NEEDS)}"]
    rate_per_s: Annotated[of.Rate | None, "requests per second after the ramp"] = None
    burstiness: Annotated[of.Shape | None, "1 is Poisson, below 1 comes in bursts"] = None
    num_clients: Annotated[of.Open | None, "of a closed load; each has one request open"] = None
    trace: Annotated[TraceSpec | None, "of a replayed load"] = None
    num_requests: Annotated[of.Count | None, "how many are sent at most"] = None
    duration_s: Annotated[of.Seconds | None, "no request is due after it; not of a closed load"] = None
    ramp_s: Annotated[of.SecondsOr0, "the rate grows linearly over it; closed: clients start one by one"] = (
        0.0
    )
    ramp_start_per_s: Annotated[of.RateOr0, "the rate that the ramp starts from"] = 0.0
    warmup_s: Annotated[of.SecondsOr0, "requests due before this are sent and not measured"] = 0.0
    cooldown_s: Annotated[of.SecondsOr0, "nor are those due in the last of the run; not of a closed load"] = (
        0.0
    )
    background: Annotated[BackgroundSpec | None, "streams that decode beside the load"] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        yield from self._fields_of_kind()
        yield from self._ramp()
        yield from self._end_of_closed() if self.is_closed else self._end()

    @property
    def is_closed(self) -> bool:
        """True when requests follow one another and not a clock."""
        return self.arrivals == "closed"

    def _fields_of_kind(self) -> Iterator[SpecError]:
        needed = NEEDS[self.arrivals]
        for name in KIND_FIELDS:
            given = getattr(self, name) is not None
            if given and name not in needed:
                users = " or ".join(repr(kind) for kind, names in NEEDS.items() if name in names)
                yield SpecError(
                    (name,),
                    f"arrivals = {self.arrivals!r} do not use it; remove it, or set arrivals to {users}",
                )
            if not given and name in needed:
                yield SpecError((name,), f"is missing; arrivals = {self.arrivals!r} need it")

    def _ramp(self) -> Iterator[SpecError]:
        if self.ramp_s and self.arrivals == "trace":
            yield SpecError(("ramp_s",), "a replayed trace has its own rate; remove it")
        if self.ramp_start_per_s and (self.is_closed or not self.ramp_s):
            yield SpecError(("ramp_start_per_s",), "there is no rate that ramps; remove it or set ramp_s")

    def _end(self) -> Iterator[SpecError]:
        if self.num_requests is None and self.duration_s is None and self.arrivals != "trace":
            yield SpecError(("num_requests",), "the load has no end; give num_requests, duration_s or both")
        if self.duration_s is None:
            return
        if self.warmup_s + self.cooldown_s >= self.duration_s:
            yield SpecError(
                ("duration_s",),
                f"{self.duration_s:g} s leave nothing to measure after {self.warmup_s:g} s of warm-up and"
                f" {self.cooldown_s:g} s of cool-down; give more",
            )
        if self.num_requests is None and (self.rate_per_s or 0.0) * self.duration_s > of.MOST_REQUESTS:
            yield SpecError(
                ("duration_s",),
                f"{self.duration_s:g} s at {self.rate_per_s:g} requests/s are more than {of.MOST_REQUESTS:,}"
                " requests; give less of one of them, or num_requests",
            )

    def _end_of_closed(self) -> Iterator[SpecError]:
        if self.num_requests is None:
            yield SpecError(("num_requests",), "is missing; a closed load is planned ahead, so give it")
        for name in ("duration_s", "cooldown_s"):
            if getattr(self, name):
                yield SpecError(
                    (name,), "a closed load ends with its last request; remove it, give num_requests"
                )


ORDERS = ("random", "file")
INPUTS = ("ids", "text")
FIELDS_OF = {
    "lognormal": ("mean_tokens", "p50_tokens", "p90_tokens", "min_tokens", "max_tokens"),
    "uniform": ("min_tokens", "max_tokens"),
    "fixed": ("tokens",),
}
OF_FILES = {
    "prompt_column": "num_prefill_tokens",
    "output_column": "num_decode_tokens",
    "order": "random",
    "prompt_scale": 1.0,
    "output_scale": 1.0,
}


@of.section
class DistributionSpec(of.Section):
    """Lengths of prompts, or of outputs, in tokens. Limits are included.

    A lognormal is fitted from two of its figures, then cut to the limits: what is drawn has other figures the
    more the limits cut off.
    """

    distribution: Annotated[str, of.choice(FIELDS_OF), f"one of {', '.join(FIELDS_OF)}"]
    mean_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    p50_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    p90_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    tokens: Annotated[of.Tokens | None, "of a fixed length"] = None
    min_tokens: Annotated[of.Tokens | None, "the least that is drawn"] = None
    max_tokens: Annotated[of.Tokens | None, "the most that is drawn"] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        used = FIELDS_OF[self.distribution]
        for name in tuple(fields_of(type(self)))[1:]:
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


@of.section
class LengthsSpec(of.Section):
    """Lengths from a file's rows, or from two distributions."""

    file: Annotated[str | None, "CSV with a header, or .jsonl; relative to the spec's folder"] = None
    prompt_column: Annotated[str, "of the file"] = "num_prefill_tokens"
    output_column: Annotated[str, "of the file"] = "num_decode_tokens"
    order: Annotated[
        str, of.choice(ORDERS), "random: rows drawn with replacement; file: in order, again and again"
    ] = "random"
    prompt_scale: Annotated[of.Factor, "multiplies the file's prompt lengths; at least 1 token is left"] = 1.0
    output_scale: Annotated[of.Factor, "multiplies the file's output lengths"] = 1.0
    prompt: Annotated[DistributionSpec | None, "without a file"] = None
    output: Annotated[DistributionSpec | None, "without a file"] = None
    max_total_tokens: Annotated[
        of.Tokens2 | None, "of prompt and output; longer rows are left out, longer draws repeated"
    ] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
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


@of.section
class PrefixSpec(of.Section):
    """Prompts that begin alike. A prompt keeps its length: the prefix stands in place of its first tokens.

    A prompt that is not longer than the prefix begins with as much of it as leaves one token of its own.
    """

    num_prefixes: Annotated[of.Count, "how many there are"]
    prefix_tokens: Annotated[of.Tokens, "of each"]
    share: Annotated[of.Part, "of the requests, that begins with one of them, each as likely"] = 1.0


@of.section
class WorkloadSpec(of.Section):
    """What requests hold."""

    lengths: Annotated[LengthsSpec, "of prompts and outputs"]
    prefixes: Annotated[PrefixSpec | None, "prompts that begin alike"] = None
    inputs: Annotated[str, of.choice(INPUTS), "ids: random token ids; text: words of the tokenizer"] = "ids"
    vocab: Annotated[
        tuple[of.TokenId, of.TokenId] | None,
        "first id, id after the last; absent: 1/8 to 7/8 of the model's; needed with server.url",
    ] = None
    seed: Annotated[of.Seed | None, "of lengths and contents; absent: run.seed"] = None
    topics: Annotated[bool, Strict(), "each prompt stays in one of the model's calibrated topics"] = False

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        if self.vocab is not None and not self.vocab[0] < self.vocab[1]:
            yield SpecError(("vocab",), f"{list(self.vocab)} is empty; give [first id, id after the last]")
        if self.topics and (self.inputs != "ids" or self.vocab is not None):
            yield SpecError(("topics",), "a topic is a range of token ids; use inputs = 'ids' without vocab")
