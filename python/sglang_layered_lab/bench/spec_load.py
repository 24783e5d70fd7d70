"""What a run sends: [load], when requests are sent and which are measured, and [workload], what they hold."""

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Strict
from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec_errors import Keys

NEEDS = {
    "poisson": ("rate_per_s",),
    "gamma": ("rate_per_s", "burstiness"),
    "constant": ("rate_per_s",),
    "closed": ("num_clients",),
    "trace": ("trace",),
}
Z90 = NormalDist().inv_cdf(0.9)
OF_LOGNORMAL = ("mean_tokens", "p50_tokens", "p90_tokens", "min_tokens", "max_tokens")
OF_DISTRIBUTIONS = {
    "lognormal": OF_LOGNORMAL,
    "uniform": ("min_tokens", "max_tokens"),
    "fixed": ("tokens",),
}
OF_FILES = ("prompt_column", "output_column", "order", "prompt_scale", "output_scale")


@dataclass(frozen=True)
class TraceSpec(of.Section):
    """Arrivals to replay: one timestamp a row, in order; the first row is due at 0."""

    file: Annotated[str, "CSV with a header, or .jsonl; relative to the spec's folder"]
    column: Annotated[str, "holds the timestamps"] = "timestamp"
    unit_s: Annotated[of.Seconds, "what one unit of the column is worth: 0.001 for milliseconds"] = 1.0
    speed: Annotated[of.Factor, "2 replays in half the time, so at twice the rate"] = 1.0


@dataclass(frozen=True)
class BackgroundSpec(of.Section):
    """Streams that decode beside the load from before its zero until its end, and are then broken off."""

    num_streams: Annotated[of.Open, "how many"]
    output_tokens: Annotated[of.Tokens2, "asked of each; more than come while the load runs"]
    prompt_tokens: Annotated[of.Tokens, "of each stream's prompt"] = 64
    tokens_before: Annotated[of.Tokens2, "that each stream has when the load begins"] = 2

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give streams that would end before the load begins."""
        if self.tokens_before > self.output_tokens:
            yield "tokens_before", f"{self.tokens_before} are more than output_tokens; give less"


@dataclass(frozen=True)
class LoadSpec(of.Section):
    """When requests are sent. Open arrivals end at `num_requests` or at `duration_s`, whichever is first.

    In a closed load each client sends its next request when its last one has ended; it ends with the last of
    `num_requests`.
    """

    arrivals: Annotated[Literal["poisson", "gamma", "constant", "closed", "trace"], "kind of the load"]
    rate_per_s: Annotated[of.Rate | None, "requests per second after the ramp"] = None
    burstiness: Annotated[of.Shape | None, "1 is Poisson, below 1 comes in bursts"] = None
    num_clients: Annotated[of.Open | None, "of a closed load; each has one request open"] = None
    trace: Annotated[TraceSpec | None, "of a replayed load"] = None
    num_requests: Annotated[of.Count | None, "how many are sent at most"] = None
    duration_s: Annotated[of.Seconds | None, "no request is due after it; not of a closed load"] = None
    ramp_s: Annotated[of.SecondsOr0, "the rate grows over it; closed: clients start one by one"] = 0.0
    ramp_start_per_s: Annotated[of.RateOr0, "the rate that the ramp starts from"] = 0.0
    warmup_s: Annotated[of.SecondsOr0, "requests due before this are sent and not measured"] = 0.0
    cooldown_s: Annotated[of.SecondsOr0, "nor are those due in the last of an open load"] = 0.0
    background: Annotated[BackgroundSpec | None, "streams that decode beside the load"] = None

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields that do not go together."""
        yield from self._unfit("arrivals", NEEDS)
        if self.ramp_s and self.arrivals == "trace":
            yield "ramp_s", "a replayed trace has its own rate; remove it"
        if self.ramp_start_per_s and (self.is_closed or not self.ramp_s):
            yield "ramp_start_per_s", "there is no rate that ramps; remove it or set ramp_s"
        yield from self._end_of_closed() if self.is_closed else self._end()

    @property
    def is_closed(self) -> bool:
        """True when requests follow one another and not a clock."""
        return self.arrivals == "closed"

    def _end(self) -> Iterator[tuple[Keys, str]]:
        if self.duration_s is None:
            if self.num_requests is None and self.arrivals != "trace":
                yield "num_requests", "the load has no end; give num_requests, duration_s or both"
            return
        length = f"{self.duration_s:g} s"
        if self.warmup_s + self.cooldown_s >= self.duration_s:
            without = f"{self.warmup_s:g} s of warm-up and {self.cooldown_s:g} s of cool-down"
            yield "duration_s", f"{length} leave nothing to measure after {without}; give more"
        if self.num_requests is None and (self.rate_per_s or 0.0) * self.duration_s > of.MOST_REQUESTS:
            many = f"{length} at {self.rate_per_s:g} requests/s are more than {of.MOST_REQUESTS:,} requests"
            yield "duration_s", f"{many}; give less of one of them, or num_requests"

    def _end_of_closed(self) -> Iterator[tuple[Keys, str]]:
        if self.num_requests is None:
            yield "num_requests", "is missing; a closed load is planned ahead, so give it"
        for name in ("duration_s", "cooldown_s"):
            if getattr(self, name):
                yield name, "a closed load ends with its last request; remove it, give num_requests"


@dataclass(frozen=True)
class Lognormal:
    """exp of a normal with mean `mu` and standard deviation `sigma` > 0."""

    mu: float
    sigma: float

    @classmethod
    def fit(cls, *, mean: float | None, p50: float | None, p90: float | None) -> "Lognormal":
        """Fit exactly two of mean, median and 90 % quantile, all in tokens.

        p50 = exp(mu), p90 = exp(mu + Z90 sigma), mean = exp(mu + sigma^2 / 2). From mean and p90 two sigmas
        follow; the smaller is taken.

        Raises:
            ValueError: not two are given, or no such distribution exists; the text says which.
        """
        if sum(figure is not None for figure in (mean, p50, p90)) != 2:
            raise ValueError("give exactly two of mean_tokens, p50_tokens, p90_tokens")
        if p50 is not None:
            other, name = (p90, "p90_tokens") if mean is None else (mean, "mean_tokens")
            assert other is not None
            if other <= p50:
                raise ValueError(f"{name} must be above p50_tokens")
            ratio = math.log(other / p50)
            return cls(math.log(p50), ratio / Z90 if mean is None else math.sqrt(2 * ratio))
        assert mean is not None and p90 is not None
        root = Z90**2 + 2 * math.log(mean / p90)
        if mean >= p90 or root < 0:
            least = math.exp(-(Z90**2) / 2)
            raise ValueError(f"mean_tokens must be between {least:.2f} and 1 times p90_tokens")
        sigma = Z90 - math.sqrt(root)
        return cls(math.log(p90) - Z90 * sigma, sigma)

    def draw(self, uniform: float, low: int, high: int | None) -> int:
        """Length at the quantile `uniform` in [0, 1) of the distribution cut to [low, high] tokens.

        Inversion: one number in, one length out, so a limit shifts no later draw.
        """
        bottom = self._below(low - 0.5)
        top = 1.0 if high is None else self._below(high + 0.5)
        share = min(max(bottom + uniform * (top - bottom), 1e-15), 1 - 1e-15)
        tokens = round(math.exp(NormalDist(self.mu, self.sigma).inv_cdf(share)))
        return max(low, tokens if high is None else min(tokens, high))

    def _below(self, tokens: float) -> float:
        return NormalDist(self.mu, self.sigma).cdf(math.log(tokens))


@dataclass(frozen=True)
class DistributionSpec(of.Section):
    """Lengths of prompts, or of outputs, in tokens. Limits are included.

    A lognormal is fitted from two of its figures, then cut to the limits: what is drawn has other figures the
    more the limits cut off.
    """

    distribution: Annotated[Literal["lognormal", "uniform", "fixed"], "kind of the lengths"]
    mean_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    p50_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    p90_tokens: Annotated[of.MeanTokens | None, "of a lognormal, before the limits"] = None
    tokens: Annotated[of.Tokens | None, "of a fixed length"] = None
    min_tokens: Annotated[of.Tokens | None, "the least that is drawn"] = None
    max_tokens: Annotated[of.Tokens | None, "the most that is drawn"] = None

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields that do not go together."""
        optional = OF_LOGNORMAL if self.distribution == "lognormal" else ()
        yield from self._unfit("distribution", OF_DISTRIBUTIONS, optional)
        if self.max_tokens is not None and self.max_tokens < (self.min_tokens or 1):
            yield "max_tokens", f"{self.max_tokens} is below min_tokens; give more"
        if optional:
            try:
                self.lognormal()
            except ValueError as error:
                yield "distribution", f"'lognormal' cannot be fitted: {error}"

    def lognormal(self) -> Lognormal:
        """The fitted lognormal, before the limits."""
        return Lognormal.fit(mean=self.mean_tokens, p50=self.p50_tokens, p90=self.p90_tokens)


@dataclass(frozen=True)
class LengthsSpec(of.Section):
    """Lengths from a file's rows, or from two distributions."""

    file: Annotated[str | None, "CSV with a header, or .jsonl; relative to the spec's folder"] = None
    prompt_column: Annotated[str, "of the file"] = "num_prefill_tokens"
    output_column: Annotated[str, "of the file"] = "num_decode_tokens"
    order: Annotated[
        Literal["random", "file"], "random: rows drawn with replacement; file: in order, again and again"
    ] = "random"
    prompt_scale: Annotated[of.Factor, "multiplies the file's prompt lengths; at least 1 token is left"] = 1.0
    output_scale: Annotated[of.Factor, "multiplies the file's output lengths"] = 1.0
    prompt: Annotated[DistributionSpec | None, "without a file"] = None
    output: Annotated[DistributionSpec | None, "without a file"] = None
    max_total_tokens: Annotated[
        of.Tokens2 | None, "of prompt and output; longer rows are left out, longer draws repeated"
    ] = None

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields that do not go together."""
        for name in ("prompt", "output"):
            given = getattr(self, name) is not None
            if given and self.file is not None:
                yield name, "lengths come from the file; remove it or file"
            if not given and self.file is None:
                yield name, "is missing; give prompt and output distributions, or a file"
        for name in OF_FILES if self.file is None else ():
            if getattr(self, name) != getattr(LengthsSpec, name):
                yield name, "only lengths from a file use it; remove it"


@dataclass(frozen=True)
class PrefixSpec(of.Section):
    """Prompts that begin alike. A prompt keeps its length: the prefix stands in place of its first tokens.

    A prompt that is not longer than the prefix begins with as much of it as leaves one token of its own.
    """

    num_prefixes: Annotated[of.Count, "how many there are"]
    prefix_tokens: Annotated[of.Tokens, "of each"]
    share: Annotated[of.Part, "of the requests, that begins with one of them, each as likely"] = 1.0


@dataclass(frozen=True)
class ShortSpec(of.Section):
    """Short prompts name a limit of their own, as requests of a class do; see docs/research.md."""

    max_tokens: Annotated[of.Tokens, "of a prompt that is short"]
    ttft_ms: Annotated[of.Milliseconds, "of its time to first token, for a policy that asks"]

    def sampling(self, prompt_tokens: int) -> dict[str, dict[str, float]]:
        """What such a prompt has among its sampling parameters."""
        is_short = prompt_tokens <= self.max_tokens
        return {"custom_params": {"slo_ttft_ms": self.ttft_ms}} if is_short else {}


@dataclass(frozen=True)
class WorkloadSpec(of.Section):
    """What requests hold."""

    lengths: Annotated[LengthsSpec, "of prompts and outputs"]
    prefixes: Annotated[PrefixSpec | None, "prompts that begin alike"] = None
    short: Annotated[ShortSpec | None, "short prompts with a limit of their own"] = None
    inputs: Annotated[Literal["ids", "text"], "ids: random token ids; text: words of the tokenizer"] = "ids"
    vocab: Annotated[
        tuple[of.TokenId, of.TokenId] | None,
        "first id, id after the last; absent: 1/8 to 7/8 of the model's; needed with server.url",
    ] = None
    seed: Annotated[of.Seed | None, "of lengths and contents; absent: run.seed"] = None
    topics: Annotated[bool, Strict(), "each prompt stays in one of the model's calibrated topics"] = False

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give fields that do not go together."""
        if self.vocab is not None and not self.vocab[0] < self.vocab[1]:
            yield "vocab", f"{list(self.vocab)} is empty; give [first id, id after the last]"
        if self.topics and (self.inputs != "ids" or self.vocab is not None):
            yield "topics", "a topic is a range of token ids; use inputs = 'ids' without vocab"
