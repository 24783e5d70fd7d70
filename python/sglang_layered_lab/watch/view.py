"""The numbers of a page: tables of what is read and how it is written, and what follows from two samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from rich.console import RenderableType

from sglang_layered.metrics.table import METRICS, NEEDS, Needs
from sglang_layered_lab.watch import text
from sglang_layered_lab.watch.pair import Pair, summed
from sglang_layered_lab.watch.sample import Labels, Sample, Series, fell, replica_of, server_of, total

Show = Callable[[Any], RenderableType]
Row = tuple[str, tuple[Any, ...]]

# Labels of the mode in force that are settings of it.
SETTINGS = sorted({*next(each.labels for each in METRICS if each.name == "prefill_mode_info")} - {"mode"})
NO_MODE = "unknown (no sglang:prefill_mode_info: not patched?)"
NO_DEVICE = "off (no device can be read there (see sglang-layered doctor))"
AT_END = " (counted at the end of a request)"
KINDS = ("prefill", "decode", "layered", "encoder")
PHASES = ("prompt", "decode", "hybrid")
SLOS = {"ttft": "TTFT", "tbt": "TBT", "both": "both"}
SLO_METRICS = ("slo_limit_seconds", "slo_requests_total")
LATENCIES = {"TTFT": "time_to_first_token_seconds", "TBT": "inter_token_latency_seconds"}


class Column(NamedTuple):
    """A column of a part: how which metric is read, and how that is written."""

    head: str
    read: Callable[..., Any]
    metric: str
    show: Show
    labels: Mapping[str, str] = {}


PER_S, WATTS = partial(text.plain, unit="/s"), partial(text.plain, unit="W")
QUANTILES: Mapping[str, Show] = {
    f"p{level}": partial(text.quantile_s, fraction=level / 100) for level in (50, 90, 99)
}
LATENCY = (
    Column("seen", Pair.seen, "", lambda seen: text.plain(seen.num_observations)),
    *(Column(head, Pair.seen, "", show) for head, show in QUANTILES.items()),
)
REQUESTS = (
    Column("running", Pair.now, "num_running_reqs", text.plain),
    Column("waiting", Pair.now, "num_queue_reqs", text.plain),
)
# The best count of tokens comes first. That for energy is exact. SGLang's live count is of decode rows: it
# lacks each request's first token, and has a row too many of each with the overlap scheduler.
TOKENS = (
    (
        Column("prompt tokens/s", Pair.rate, "tokens_for_energy_total", text.plain, {"kind": "prompt"}),
        Column("output tokens/s", Pair.rate, "tokens_for_energy_total", text.plain, {"kind": "output"}),
    ),
    (
        Column(
            "prompt tokens/s", Pair.rate, "realtime_tokens_total", text.plain, {"mode": "prefill_compute"}
        ),
        Column("output tokens/s", Pair.rate, "realtime_tokens_total", text.plain, {"mode": "decode"}),
    ),
    (
        Column(f"prompt tokens/s{AT_END}", Pair.rate, "prompt_tokens_total", text.plain),
        Column(f"output tokens/s{AT_END}", Pair.rate, "generation_tokens_total", text.plain),
    ),
)
STEPS = (
    Column("rate", Pair.rate, "layered_steps_total", PER_S),
    Column("mean", Pair.seen, "layered_step_seconds", partial(text.mean, show=text.seconds)),
    Column("p50", Pair.seen, "layered_step_seconds", QUANTILES["p50"]),
    Column("p99", Pair.seen, "layered_step_seconds", QUANTILES["p99"]),
)
COHORTS = (
    Column("in flight", Pair.now, "layered_cohorts_in_flight", text.plain),
    Column("parked", Pair.total_bytes, "layered_parked_bytes", text.size),
    Column("slots filled", Pair.now, "layered_kv_slots", text.plain, {"state": "filled"}),
    Column("partial", Pair.now, "layered_kv_slots", text.plain, {"state": "partial"}),
    Column("dropped ever", Pair.by_reason, "layered_dropped_cohorts_total", text.counts),
)
EXPERTS = (
    Column("read", Pair.total_bytes_per_s, "expert_load_bytes_total", partial(text.size, per="/s")),
    Column("mean coverage", Pair.seen, "expert_coverage_ratio", partial(text.mean, show=text.percent)),
    Column("mean tokens/active expert", Pair.seen, "expert_tokens_per_active_expert", text.mean),
)
ENERGY: Mapping[str, Show] = {
    **{"now": WATTS, "idle": WATTS, "J/prompt": text.plain, "J/output": text.plain, "J/token": text.plain},
    "source": str,
}
SLO = (
    Column("limit", Pair.values, "slo_limit_seconds", text.limits),
    Column("in the window", Pair.met, "slo_requests_total", text.share),
    Column("since its start", Pair.met_ever, "slo_requests_total", text.share),
)
RANKS = (
    *REQUESTS,
    *(STEPS[0]._replace(head="steps"), STEPS[1], STEPS[3]),
    Column("parked", Pair.now, "layered_parked_bytes", text.size),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A table of the page: how each column is written, and rows by name; None is nothing to tell.

    `off` says what would make the server fill it.
    """

    columns: Mapping[str, Show]
    rows: tuple[Row, ...] = ()
    off: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """All numbers of a page, the most looked at first; `ranks` are there only where there are several.

    `window_s` is the time between the two samples; `server` is what the server says about itself.
    """

    window_s: float
    restarted: bool
    server: tuple[str, ...]
    parts: Mapping[str, Part]


def view(old: Sample, new: Sample) -> View:
    """What happened from `old` to `new`, and what `new` says of the present."""
    pair, ranks, names = Pair(old, new), new.ranks(), " ".join(new.series)
    tokens = next((columns for columns in TOKENS if new.of(columns[1].metric)), TOKENS[0])
    parts = {
        "requests": _part(pair, (*REQUESTS, *tokens)),
        "latency": _part(pair, LATENCY, {name: {"metric": of} for name, of in LATENCIES.items()}),
        **dict.fromkeys(("steps", "cohorts"), _off("layered")),
    }
    if "layered_" in names:
        parts["steps"] = _part(pair, STEPS, {kind: {"kind": kind} for kind in KINDS})
        parts["cohorts"] = _part(pair, COHORTS)
        parts["groups"] = Part({"of the oldest cohort": text.progress}, tuple(_progress(pair)))
    phases = {phase: {"phase": phase} for phase in PHASES}
    parts["experts"] = _part(pair, EXPERTS, phases) if "expert_" in names else _off("experts")
    no_power = Part({}, off=NO_DEVICE) if "tokens_for_energy_total" in names else _off("energy")
    devices = tuple(_devices(pair))
    parts["energy"] = Part(ENERGY, devices) if devices else no_power
    in_force = {dict(key).get("slo") for name in SLO_METRICS for key in new.of(name)}
    limits = {shown: {"slo": slo} for slo, shown in SLOS.items() if slo in in_force}
    parts["SLO met"] = _part(pair, SLO, limits) if limits else _off("slo")
    if len(ranks) > 1:
        rows = [_row(Pair(old, new, rank), RANKS, text.rank_name(rank)) for rank in ranks]
        parts["ranks"] = Part({column.head: column.show for column in RANKS}, tuple(rows))
    return View(pair.window_s, fell(old, new), tuple(_server(new)), parts)


def _off(needs: Needs) -> Part:
    """A part whose flag was not given."""
    return Part({}, off=f"off ({NEEDS[needs].replace('`', '')})")


def _part(pair: Pair, columns: Sequence[Column], rows: Mapping[str, Mapping[str, str]] = {"": {}}) -> Part:
    """Cells for the labels of each row; `metric` among them stands for the columns' own."""
    shows = {column.head: column.show for column in columns}
    return Part(shows, tuple(_row(pair, columns, name, **labels) for name, labels in rows.items()))


def _row(pair: Pair, columns: Sequence[Column], name: str, **labels: str) -> Row:
    return name, tuple(
        column.read(pair, **{"metric": column.metric, **column.labels, **labels}) for column in columns
    )


def _progress(pair: Pair) -> Iterator[Row]:
    """Layer groups done and left of each replica's oldest cohort."""
    done, left = (
        summed(pair.once(pair.new.of("layered_cohort_groups", state=state)), replica_of)
        for state in ("done", "left")
    )
    for replica in sorted({*done, *left}):
        yield text.rank_name(replica), ((done.get(replica, 0), left.get(replica, 0)),)


def _devices(pair: Pair) -> Iterator[Row]:
    """A row a device, then one for all if there are several.

    Each kind of token is divided the whole energy of the device, so J/token of two kinds do not add up.
    """
    joules = summed(pair.grown("energy_joules_total"), _device)
    idle_watts = summed(pair.new.of("energy_idle_watts"), _device)
    tokens = pair.grown("tokens_for_energy_total")
    devices = sorted({*joules, *idle_watts})
    for device in devices:
        server, name, source = device
        mine = {key: value for key, value in tokens.items() if server_of(key) == server}
        numbers = _energy(pair.window_s, joules.get(device), mine)
        yield f"{server} {name}".strip(), (numbers[0], idle_watts.get(device), *numbers[1:], source)
    if len(devices) > 1:
        all_joules, all_idle = (
            sum(each.values()) if len(each) == len(devices) else None for each in (joules, idle_watts)
        )
        numbers = _energy(pair.window_s, all_joules, tokens)
        yield "all", (numbers[0], all_idle, *numbers[1:], "")


def _device(labels: Labels) -> tuple[str, str, str]:
    """Its server, its name, and where its energy is read."""
    return server_of(labels), dict(labels).get("device", "?"), dict(labels).get("source", "?")


def _energy(window_s: float, joules: float | None, tokens: Series) -> list[float | None]:
    """Watts, and joules for each prompt token, output token and token of either kind."""
    if joules is None:
        return [None] * 4
    prompt, output = total(tokens, kind="prompt"), total(tokens, kind="output")
    return [joules / number if number else None for number in (window_s, prompt, output, prompt + output)]


def _server(sample: Sample) -> Iterator[str]:
    """What the server says about itself."""
    models = {dict(key).get("model_name", "") for series in sample.series.values() for key in series} - {""}
    yield f"model {', '.join(sorted(models)) or 'unknown'}"
    modes = {_mode(dict(key)) for key, value in sample.of("prefill_mode_info").items() if value}
    yield f"mode {' and '.join(sorted(modes)) or NO_MODE}"
    ran = [dict(key)["strategy"] for key, value in sample.of("layered_strategy_info").items() if value]
    if ran:
        yield f"strategy {', '.join(sorted(set(ran)))}"


def _mode(labels: Mapping[str, str]) -> str:
    settings = [f"{name} {labels[name]}" for name in SETTINGS if labels.get(name)]
    return ", ".join([labels.get("mode", "?"), *settings])
