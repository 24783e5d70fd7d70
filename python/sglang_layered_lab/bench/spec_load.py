"""The section [load] of a spec: when requests are sent, and which of them are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from sglang_layered_lab.bench.spec_errors import SpecError, bad_choice
from sglang_layered_lab.bench.spec_keys import (
    MOST_REQUESTS,
    Checked,
    Key,
    as_factor,
    as_rate,
    count_of,
    in_seconds,
    in_tokens,
    plain,
)

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
MOST_OPEN = 65_536  # streams and clients at once: a connection each


@dataclass(frozen=True, slots=True)
class TraceSpec(Checked):
    """Arrivals to replay: one timestamp a row, in order; the first row is due at 0."""

    file: Annotated[str, plain("CSV with a header, or .jsonl; a relative path starts at the spec's folder")]
    column: Annotated[str, plain("holds the timestamps")] = "timestamp"
    unit_s: Annotated[float, in_seconds("what one unit of the column is worth: 0.001 for milliseconds")] = 1.0
    speed: Annotated[float, as_factor("2 replays in half the time, so at twice the rate")] = 1.0


@dataclass(frozen=True, slots=True)
class BackgroundSpec(Checked):
    """Streams that decode beside the load from before its zero until its end, and are then broken off."""

    num_streams: Annotated[int, count_of("streams", "how many", most=MOST_OPEN)]
    output_tokens: Annotated[int, in_tokens("asked of each; more than come while the load runs", least=2)]
    prompt_tokens: Annotated[int, in_tokens("of each stream's prompt")] = 64


@dataclass(frozen=True, slots=True)
class LoadSpec(Checked):
    """When requests are sent. Open arrivals end at `num_requests` or at `duration_s`, whichever is first.

    In a closed load each client sends its next request when its last one has ended; it ends with the last of
    `num_requests`.
    """

    arrivals: Annotated[str, plain(f"one of {', '.join(NEEDS)}")]
    rate_per_s: Annotated[float | None, as_rate("requests per second after the ramp")] = None
    burstiness: Annotated[
        float | None,
        Key(
            "the shape of the gamma distribution", "1 is Poisson, below 1 comes in bursts", above=0, most=1e3
        ),
    ] = None
    num_clients: Annotated[
        int | None, count_of("clients", "of a closed load; each has one request open", most=MOST_OPEN)
    ] = None
    trace: Annotated[TraceSpec | None, plain("of a replayed load")] = None
    num_requests: Annotated[int | None, count_of("requests", "how many are sent at most")] = None
    duration_s: Annotated[float | None, in_seconds("no request is due after it; not of a closed load")] = None
    ramp_s: Annotated[
        float,
        in_seconds(
            "the rate grows linearly over this time; closed: clients start one by one over it",
            can_be_zero=True,
        ),
    ] = 0.0
    ramp_start_per_s: Annotated[float, as_rate("the rate that the ramp starts from", can_be_zero=True)] = 0.0
    warmup_s: Annotated[
        float, in_seconds("requests due before this are sent and not measured", can_be_zero=True)
    ] = 0.0
    cooldown_s: Annotated[
        float, in_seconds("nor are those due in the last of the run; not of a closed load", can_be_zero=True)
    ] = 0.0
    background: Annotated[BackgroundSpec | None, plain("streams that decode beside the load")] = None

    def problems(self) -> Iterator[SpecError]:
        """Give fields that do not go together."""
        yield from bad_choice("arrivals", self.arrivals, NEEDS)
        if self.arrivals in NEEDS:
            yield from self._fields_of_kind()
            yield from self._ramp()
            yield from self._end()

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
        if self.is_closed:
            yield from self._end_of_closed()
            return
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
        if self.num_requests is None and (self.rate_per_s or 0.0) * self.duration_s > MOST_REQUESTS:
            yield SpecError(
                ("duration_s",),
                f"{self.duration_s:g} s at {self.rate_per_s:g} requests/s are more than {MOST_REQUESTS:,}"
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
