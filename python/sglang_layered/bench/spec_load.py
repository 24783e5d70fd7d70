"""The section [load] of a spec: when requests are sent, and which of them are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sglang_layered.bench.spec_errors import SpecError, check_above, check_choice

NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "poisson": ("rate_per_s",),
        "gamma": ("rate_per_s", "burstiness"),
        "constant": ("rate_per_s",),
        "closed": ("num_clients",),
        "trace": ("trace",),
    }
)
KIND_FIELDS = ("rate_per_s", "burstiness", "num_clients", "trace")


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Arrivals to replay: one timestamp a row, in order; the first row is due at 0."""

    file: str  # CSV with a header, or .jsonl; a relative path starts at the spec's folder
    column: str = "timestamp"
    unit_s: float = 1.0  # what one unit of the column is worth: 0.001 for milliseconds
    speed: float = 1.0  # 2 replays in half the time, so at twice the rate

    def __post_init__(self) -> None:
        check_above("unit_s", self.unit_s, "seconds")
        check_above("speed", self.speed, "a factor")


@dataclass(frozen=True, slots=True)
class BackgroundSpec:
    """Streams that decode beside the load from before its zero until its end, and are then broken off."""

    num_streams: int
    output_tokens: int  # asked of each; more than come while the load runs
    prompt_tokens: int = 64

    def __post_init__(self) -> None:
        check_above("num_streams", self.num_streams, "a number of streams", least=1)
        check_above("output_tokens", self.output_tokens, "tokens", least=2)
        check_above("prompt_tokens", self.prompt_tokens, "tokens", least=1)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """When requests are sent. Open arrivals end at `num_requests` or at `duration_s`, whichever is first.

    In a closed load each client sends its next request when its last one has ended.
    """

    arrivals: str  # a key of NEEDS
    rate_per_s: float | None = None  # requests per second after the ramp
    burstiness: float | None = None  # shape of the gamma; 1 is Poisson, below 1 comes in bursts
    num_clients: int | None = None
    trace: TraceSpec | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    ramp_s: float = 0.0  # the rate grows linearly over this time; closed: clients start one by one over it
    ramp_start_per_s: float = 0.0  # the rate that the ramp starts from
    warmup_s: float = 0.0  # requests due before this are sent and not measured
    cooldown_s: float = 0.0  # nor are those due in the last of the run
    background: BackgroundSpec | None = None

    def __post_init__(self) -> None:
        check_choice("arrivals", self.arrivals, NEEDS)
        self._check_fields_of_kind()
        check_above("rate_per_s", self.rate_per_s, "requests per second")
        check_above("burstiness", self.burstiness, "the shape of the gamma distribution")
        check_above("num_clients", self.num_clients, "a number of clients", least=1)
        check_above("num_requests", self.num_requests, "a number of requests", least=1)
        check_above("duration_s", self.duration_s, "seconds")
        for name in ("ramp_s", "warmup_s", "cooldown_s"):
            check_above(name, getattr(self, name), "seconds", least=0)
        check_above("ramp_start_per_s", self.ramp_start_per_s, "requests per second", least=0)
        self._check_ramp()
        self._check_end()

    @property
    def is_closed(self) -> bool:
        """True when requests follow one another and not a clock."""
        return self.arrivals == "closed"

    def _check_fields_of_kind(self) -> None:
        needed = NEEDS[self.arrivals]
        for name in KIND_FIELDS:
            given = getattr(self, name) is not None
            if given and name not in needed:
                users = " or ".join(repr(kind) for kind, names in NEEDS.items() if name in names)
                raise SpecError(
                    (name,),
                    f"arrivals = {self.arrivals!r} do not use it; remove it, or set arrivals to {users}",
                )
            if not given and name in needed:
                raise SpecError((name,), f"is missing; arrivals = {self.arrivals!r} need it")

    def _check_ramp(self) -> None:
        if self.ramp_s and self.arrivals == "trace":
            raise SpecError(("ramp_s",), "a replayed trace has its own rate; remove it")
        if self.ramp_start_per_s and (self.is_closed or not self.ramp_s):
            raise SpecError(("ramp_start_per_s",), "there is no rate that ramps; remove it or set ramp_s")

    def _check_end(self) -> None:
        if self.num_requests is None and self.duration_s is None and self.arrivals != "trace":
            raise SpecError(("num_requests",), "the load has no end; give num_requests, duration_s or both")
        if self.duration_s is None:
            if self.is_closed and self.cooldown_s:
                raise SpecError(("cooldown_s",), "the end of a closed load is not known; give duration_s too")
        elif self.warmup_s + self.cooldown_s >= self.duration_s:
            raise SpecError(
                ("duration_s",),
                f"{self.duration_s:g} s leave nothing to measure after {self.warmup_s:g} s of warm-up and"
                f" {self.cooldown_s:g} s of cool-down; give more",
            )
