"""The numbers of a page, from two samples of one server. It knows no terminal.

Counts that every pipeline stage repeats (steps, requests, tokens, cohorts, KV slots) are those of each
replica's first stage; bytes are the sum over all ranks, and times are over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_layered.metrics.table import NEEDS, Needs
from sglang_layered_lab.watch.energy import DeviceLine, device_lines
from sglang_layered_lab.watch.sample import (
    Histogram,
    Labels,
    Rank,
    Sample,
    Source,
    fell,
    increases,
    number,
    observed,
    rank_of,
    total,
)
from sglang_layered_lab.watch.traffic import ExpertLine, SloLine, expert_lines, slo_lines

# Labels of SGLang's own, or that tell ranks apart: all others of `prefill_mode_info` are settings.
PLACE_LABELS = {
    *("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank", "dp_rank", "worker_addr", "instance"),
    *("job", "priority", "mode", "version"),
}
KINDS = ("prefill", "decode", "layered")


@dataclass(frozen=True, slots=True)
class Off:
    """A part of the page that this server does not fill, and what would make it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says about itself; every field may be empty on a server without this package."""

    models: tuple[str, ...]
    modes: tuple[str, ...]
    strategies: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Tokens by the best count there is; None where there is none.

    `at_end` says that they count only when their request ends, for want of a live count.
    """

    prompt_per_s: float | None = None
    output_per_s: float | None = None
    at_end: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Requests now, and tokens over the window; None where the server counts none."""

    running: float | None
    waiting: float | None
    tokens: TokenRates


@dataclass(frozen=True, slots=True)
class StepLine:
    """Steps of one kind over the window."""

    kind: str
    per_s: float
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class Progress:
    """The oldest cohort of one replica: layer groups done and left, both 0 without a cohort."""

    source: Source
    done: int
    left: int


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Cohorts in flight now, and those dropped since the server started, by reason."""

    in_flight: float
    parked_bytes: float
    slots_filled: float
    slots_partial: float
    progress: tuple[Progress, ...]
    dropped: dict[str, float]


@dataclass(frozen=True, slots=True)
class RankLine:
    """One rank's part; None where the rank says nothing."""

    rank: Rank
    running: float | None
    waiting: float | None
    steps_per_s: float | None
    seconds: Histogram
    parked_bytes: float | None


@dataclass(frozen=True, slots=True)
class View:
    """All numbers of a page. `window_s` is the time between the two samples."""

    window_s: float
    restarted: bool
    server: Server
    load: Load
    ttft_s: Histogram
    tbt_s: Histogram
    steps: tuple[StepLine, ...] | Off
    cohorts: Cohorts | Off
    experts: tuple[ExpertLine, ...] | Off
    power: tuple[DeviceLine, ...] | Off
    slo: tuple[SloLine, ...] | Off
    ranks: tuple[RankLine, ...]


def view(old: Sample, new: Sample) -> View:
    """What happened from `old` to `new`, and what `new` says of the present."""
    window_s = new.time_s - old.time_s
    layered = any(name.startswith("layered_") for name in new.series)
    ranks = new.ranks()
    return View(
        window_s=window_s,
        restarted=fell(old, new),
        server=_server(new),
        load=_load(old, new, window_s),
        ttft_s=observed(old, new, "time_to_first_token_seconds"),
        tbt_s=observed(old, new, "inter_token_latency_seconds"),
        steps=_steps(old, new, window_s) if layered else off("layered"),
        cohorts=_cohorts(new) if layered else off("layered"),
        experts=expert_lines(old, new, window_s) or off("experts"),
        power=device_lines(old, new, window_s) or no_power(new),
        slo=slo_lines(old, new) or off("slo"),
        ranks=tuple(_rank(old, new, window_s, rank) for rank in ranks) if len(ranks) > 1 else (),
    )


def off(needs: Needs) -> Off:
    """A part whose flag was not given."""
    return Off(f"off ({NEEDS[needs].replace('`', '')})")


def no_power(sample: Sample) -> Off:
    """Why there is no energy: only the flag makes a server count the tokens for it."""
    if sample.of("tokens_for_energy_total"):
        return Off("no device can be read there (see sglang-layered doctor)")
    return off("energy")


def first_stages(series: dict[Labels, float]) -> dict[Labels, float]:
    """Series of each replica's first stage, without SGLang's breakdown of gauges by priority."""
    first: dict[Source, int] = {}
    for key in series:
        source, stage = rank_of(key)
        first[source] = min(number(stage), first.get(source, number(stage)))
    return {
        key: value
        for key, value in series.items()
        if number(rank_of(key).stage) == first[rank_of(key).source] and dict(key).get("priority", "") == ""
    }


def _present(sample: Sample, name: str, **labels: str) -> float | None:
    series = first_stages(sample.of(name, **labels))
    return total(series) if series else None


def _label_values(series: dict[Labels, float], name: str) -> tuple[str, ...]:
    return tuple(sorted({dict(key)[name] for key, value in series.items() if value and dict(key).get(name)}))


def _server(sample: Sample) -> Server:
    info = {key: value for key, value in sample.of("prefill_mode_info").items() if value}
    models = {dict(key).get("model_name", "") for series in sample.series.values() for key in series} - {""}
    return Server(
        models=tuple(sorted(models)),
        modes=tuple(sorted({_mode(key) for key in info})),
        strategies=_label_values(sample.of("layered_strategy_info"), "strategy"),
        versions=_label_values(info, "version"),
    )


def _mode(labels: Labels) -> str:
    settings = sorted((name, value) for name, value in labels if name not in PLACE_LABELS and value)
    return ", ".join([dict(labels).get("mode", "?"), *(f"{name} {value}" for name, value in settings)])


def _load(old: Sample, new: Sample, window_s: float) -> Load:
    return Load(
        running=_present(new, "num_running_reqs"),
        waiting=_present(new, "num_queue_reqs"),
        tokens=_token_rates(old, new, window_s),
    )


def _token_rates(old: Sample, new: Sample, window_s: float) -> TokenRates:
    """Rates of the best count that the server has.

    `tokens_for_energy_total` is exact. SGLang's live count is of decode rows: it lacks each request's first
    token, and has a row too many of each with the overlap scheduler.
    """
    for name, label, prompt, output in (
        ("tokens_for_energy_total", "kind", "prompt", "output"),
        ("realtime_tokens_total", "mode", "prefill_compute", "decode"),
    ):
        if new.of(name):
            tokens = first_stages(increases(old, new, name))
            return TokenRates(
                total(tokens, **{label: prompt}) / window_s, total(tokens, **{label: output}) / window_s
            )
    if not new.of("generation_tokens_total"):
        return TokenRates()
    prompts, outputs = (
        increases(old, new, name) for name in ("prompt_tokens_total", "generation_tokens_total")
    )
    return TokenRates(total(prompts) / window_s, total(outputs) / window_s, at_end=True)


def _steps(old: Sample, new: Sample, window_s: float) -> tuple[StepLine, ...]:
    counts = first_stages(increases(old, new, "layered_steps_total"))
    seen = {dict(key).get("kind", "") for key in new.of("layered_steps_total")}
    kinds = [*KINDS, *sorted(seen - {*KINDS, ""})]
    return tuple(
        StepLine(
            kind=kind,
            per_s=total(counts, kind=kind) / window_s,
            seconds=observed(old, new, "layered_step_seconds", kind=kind),
        )
        for kind in kinds
    )


def _cohorts(sample: Sample) -> Cohorts:
    dropped: dict[str, float] = {}
    for key, value in first_stages(sample.of("layered_dropped_cohorts_total")).items():
        reason = dict(key).get("reason", "?")
        dropped[reason] = dropped.get(reason, 0.0) + value
    return Cohorts(
        in_flight=_present(sample, "layered_cohorts_in_flight") or 0.0,
        parked_bytes=total(sample.of("layered_parked_bytes")),
        slots_filled=_present(sample, "layered_kv_slots", state="filled") or 0.0,
        slots_partial=_present(sample, "layered_kv_slots", state="partial") or 0.0,
        progress=_progress(sample),
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def _progress(sample: Sample) -> tuple[Progress, ...]:
    groups: dict[Source, dict[str, int]] = {}
    for key, value in first_stages(sample.of("layered_cohort_groups")).items():
        groups.setdefault(rank_of(key).source, {})[dict(key).get("state", "")] = round(value)
    return tuple(
        Progress(source, states.get("done", 0), states.get("left", 0))
        for source, states in sorted(
            groups.items(), key=lambda each: (each[0].server, number(each[0].dp_rank))
        )
    )


def _rank(old: Sample, new: Sample, window_s: float, rank: Rank) -> RankLine:
    def now(name: str) -> float | None:
        mine = {key: value for key, value in new.of(name).items() if rank_of(key) == rank}
        mine = {key: value for key, value in mine.items() if dict(key).get("priority", "") == ""}
        return total(mine) if mine else None

    steps = [
        value for key, value in increases(old, new, "layered_steps_total").items() if rank_of(key) == rank
    ]
    return RankLine(
        rank=rank,
        running=now("num_running_reqs"),
        waiting=now("num_queue_reqs"),
        steps_per_s=sum(steps) / window_s if steps else None,
        seconds=observed(old, new, "layered_step_seconds", rank=rank),
        parked_bytes=now("layered_parked_bytes"),
    )
