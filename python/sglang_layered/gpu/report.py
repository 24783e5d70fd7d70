"""Records as tables, on the terminal and as results/h200/README.md. Metrics come from `figures`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sglang_layered.gpu.figures import bound_of, figures
from sglang_layered.gpu.records import Row, StageRecord

NOTHING = "Nothing has been measured on a GPU yet; [TODO.md](TODO.md) lists what is to be run, in order."
HEAD = """# Records of the H200

Made by `scripts/gpu/suite table` from the JSON records in this folder; do not edit. How to make records:
[docs/gpu-host.md](../../docs/gpu-host.md). What is still open: [TODO.md](TODO.md)."""
LEGEND = """Times in ms, medians over repetitions. *TTFT*: at the client. *worst gap*: of the running streams
until that first token; *steady*: before the prompt came. *step sum*, *worst step*: the prompt's forwards on
the device; *decode*: a step without prompt rows. *roof*: step sum (without one: TTFT) over the roofline with
uniform routing, which dummy weights come close to, and with the paper's coverage of real text
(docs/cost-model.md). Beside no decode a prompt runs whole in every mode."""

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
    makers = {"step": _points, "serve": _points, "smoke": _smoke, "correct": _correct, "kernels": _kernels}
    return makers[record.stage](record)


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
    found = [record for record in records if record.profile == "gpu"]
    for record in found:
        name = record.path.parent.name if record.path else ""
        parts += [f"## {record.stage} ({name}): {record.status}", _where(record)]
        if record.problem:
            parts.append(f"Problem: `{record.problem.splitlines()[0][:300]}`")
        parts.append(markdown(stage_table(record)))
        if record.stage in ("step", "serve"):
            parts.append(LEGEND)
    return "\n\n".join([*parts, *([] if found else [NOTHING])]) + "\n"


def _where(record: StageRecord) -> str:
    known = record.environment
    gpus = ", ".join(known.get("machine", {}).get("gpus", [])) or "no GPU"
    versions = ", ".join(f"{name} {number}" for name, number in known.get("versions", {}).items())
    return f"{gpus}; {versions}; commit {known.get('commit') or 'unknown'}; {record.elapsed_s:.0f} s."


def _points(record: StageRecord) -> Table:
    return POINT_COLUMNS, [_point(row, record.profile == "gpu") for row in record.rows]


def _point(row: Row, with_roof: bool) -> list[str]:
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
        bound = bound_of(row, coverage) if with_roof and row["arm"] != "default" else None
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
