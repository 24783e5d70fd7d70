"""Records as tables, on the terminal and as results/h200/README.md. Metrics come from `figures`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.gpu import profile_report
from sglang_layered_lab.gpu.equal import FAMILIES, AtLimit, at_limits, places
from sglang_layered_lab.gpu.figures import bound_of, figures, shape_of, step_model
from sglang_layered_lab.gpu.profiles import PROFILES
from sglang_layered_lab.gpu.records import Row, StageRecord

NOTHING = "Nothing has been measured on a GPU yet; [TODO.md](TODO.md) lists what is to be run, in order."
HEAD = """# Records of the H200

Made by `scripts/gpu/suite table` from the JSON records in this folder; do not edit. How to make records:
[docs/gpu-host.md](../../docs/gpu-host.md). What is still open: [TODO.md](TODO.md)."""
LEGEND = """Times in ms, medians over repetitions. *TTFT*: at the client. *worst gap*: of the running streams
until that first token; *steady*: before the prompt came. *step sum*, *worst step*: the prompt's forwards on
the device; *decode*: a step without prompt rows. *roof*: step sum (without one: TTFT) over the roofline with
uniform routing, which dummy weights come close to, and with the paper's coverage of real text
(docs/cost-model.md). Beside no decode a prompt runs whole in every mode."""

EQUAL_LEGEND = """*limit*: on the worst gap of the running streams, client's clock. Of each family the soonest
arm that keeps it, medians and ends over repetitions. *roofline*: the least that layered prefill takes at any
number of groups under that limit, with the coverage of the routers. Goals: at most 0.60 of the best chunk
size at 20 ms beside 16 streams, at most 1.25 of the roofline. Pictures: `scripts/gpu/suite pareto`."""

POINT_COLUMNS = (
    "arm",
    "decode rows",
    "prompt",
    "groups",
    "TTFT",
    "worst gap",
    "steady",
    "step sum",
    "worst step",
    "decode",
    "roof uniform",
    "roof paper",
)
Table = tuple[Sequence[str], list[list[str]]]  # headings, rows


def stage_table(record: StageRecord) -> Table:
    """Headings and rows of one stage."""
    makers = {
        "step": _points,
        "serve": _points,
        "smoke": _smoke,
        "correct": _correct,
        "kernels": _kernels,
        "profile": _profile,
        "coverage": _coverage,
    }
    return makers[record.stage](record)


def equal_table(record: StageRecord) -> Table:
    """The best of each family under every limit that somebody keeps, for each load."""
    headings = (
        "streams", "prompt", "limit ms", "best chunks", "TTFT", "PD multiplexing", "TTFT", "best groups",
        "TTFT", "groups / chunks", "roofline", "groups / roofline",
    )  # fmt: skip
    profile = PROFILES[record.profile]
    found = [at_limits(place, shape_of(profile), coverage=profile.coverage) for place in places(record.rows)]
    rows = [_at_limit(each) for limits in found for each in limits if each.best]
    return headings, rows


def _at_limit(each: AtLimit) -> list[str]:
    cells = [str(each.place.decode_rows), str(each.place.prompt_tokens), f"{1e3 * each.limit_s:g}"]
    for family in FAMILIES:
        best = each.best.get(family)
        spread = "-" if best is None else f"{_ms(best.ttft_s)} [{_ms(best.low_s)}, {_ms(best.high_s)}]"
        cells += ["-" if best is None else best.label, spread]
    roof = "-" if each.roof is None else f"G={each.roof.num_steps}: {_ms(each.roof.ttft_s)}"
    return [*cells, _ratio(each.over_chunked), roof, _ratio(each.over_roof)]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plain(table: Table) -> str:
    """The table in aligned columns."""
    headings, rows = table
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [headings, *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(table: Table) -> str:
    """The table for a document."""
    headings, rows = table
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def document(records: Iterable[StageRecord]) -> str:
    """All of results/h200/README.md."""
    parts = [HEAD]
    found = [record for record in records if PROFILES[record.profile].device == "cuda"]
    for record in found:
        name = record.path.parent.name if record.path else ""
        what = record.stage if record.profile == "gpu" else f"{record.stage}, {record.profile}"
        parts += [f"## {what} ({name}): {record.status}", _where(record)]
        if record.problem:
            parts.append(f"Problem: `{record.problem.splitlines()[0][:300]}`")
        parts.append(markdown(stage_table(record)))
        if record.stage in ("step", "serve"):
            parts.append(LEGEND)
        if record.stage == "step":
            parts += ["### At equal TBT", markdown(equal_table(record)), EQUAL_LEGEND]
        if record.stage == "profile":
            parts.append(profile_report.LEGEND)
    return "\n\n".join([*parts, *([] if found else [NOTHING])]) + "\n"


def _where(record: StageRecord) -> str:
    known = record.environment
    gpus = ", ".join(known.get("machine", {}).get("gpus", [])) or "no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items())
    return f"{gpus}; {versions}; commit {known.get('commit') or 'unknown'}; {record.elapsed_s:.0f} s."


def _points(record: StageRecord) -> Table:
    shape = shape_of(PROFILES[record.profile])
    return POINT_COLUMNS, [_point(row, shape) for row in record.rows]


def _point(row: Row, shape: ModelShape | None) -> list[str]:
    if "left_out" in row:
        return [row["arm"], *["-"] * (len(POINT_COLUMNS) - 1)]
    found = figures(row)
    times = (
        found.ttft_s,
        found.worst_gap_s,
        found.steady_gap_s,
        found.step_sum_s,
        found.worst_step_s,
        found.decode_s,
    )
    reached_s = found.ttft_s if found.step_sum_s is None else found.step_sum_s
    roofs = []
    for coverage in ("uniform", "paper"):
        bound = None if shape is None else bound_of(row, coverage, shape)
        roofs.append(f"{reached_s / bound.ttft_s:.2f}" if bound else "-")
    groups = "-" if found.num_steps is None else str(found.num_steps)
    names = [row["arm"], str(row["decode_rows"]), str(row["prompt_tokens"]), groups]
    return [*names, *(_ms(time_s) for time_s in times), *roofs]


def _ms(time_s: float | None) -> str:
    return "-" if time_s is None else f"{1000 * time_s:.2f}"


def _smoke(record: StageRecord) -> Table:
    rows = [
        [row["key"], row["mode"], str(len(row["tokens"])), f"{row['start_s']:.0f}"] for row in record.rows
    ]
    return ("server", "mode", "tokens", "start (s)"), rows


def _correct(record: StageRecord) -> Table:
    rows = []
    for row in record.rows:
        if "left_out" in row:
            rows.append([row["key"], "left out", row["left_out"], ""])
        elif "agreement" in row:
            shares = [f"{row[name]:.1%}" for name in ("agreement", "first_tokens")]
            rows.append([row["key"], *shares, f"{row['max_logprob_diff']:.4f}"])
        elif not row["key"].endswith(("stock", "compare")):
            rows.append([row["key"], "ok", " ".join(row.get("output", [])), ""])
    return ("check", "tokens as stock", "first tokens", "max log-probability difference"), rows


def _kernels(record: StageRecord) -> Table:
    lines = [line for row in record.rows for line in row["output"].splitlines()]
    return ("sglang-layered bench kernels",), [[line] for line in lines]


def _profile(record: StageRecord) -> Table:
    profile = PROFILES[record.profile]
    shape = shape_of(profile)
    model = None if shape is None else step_model(shape, profile.coverage)
    rows = [line for row in record.rows for line in profile_report.profile_rows(row, model)]
    return profile_report.HEADINGS, rows


def _coverage(record: StageRecord) -> Table:
    rows = [
        [row["key"], *(f"{row[name]:.1%}" for name in ("paper", "uniform", "measured")), str(row["steps"])]
        for row in record.rows
    ]
    return ("tokens of one step", "the paper", "uniform routing", "measured", "steps"), rows
