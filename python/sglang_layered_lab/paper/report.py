"""REPORT.md of a profile: the paper's numbers beside ours, duels, losses, pictures; all from records."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered_lab.bench.pictures import Missing, pictures_at, pictures_over_rates
from sglang_layered_lab.bench.sweep_compare import RIVAL_MODE, baseline_of
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.tables import outcomes, point_text, scalar_table, to_markdown
from sglang_layered_lab.models.router_targets import DECODE
from sglang_layered_lab.paper import answers, capacity, claims

PICTURES = "pictures"
VERDICTS = ("better", "worse", "undecided")
JUDGED = ("ttft_mean", "e2e_mean", "tbt_worst", "beside_worst", "attainment", "output_rate", "expert_bytes")
SHOWN = (
    "ttft_mean",
    "ttft_p99",
    "tbt_p99",
    "tbt_worst",
    "e2e_mean",
    "attainment",
    "decode_batch",
    "expert_bytes",
)
SHOWN_BESIDE = ("ttft_mean", "beside_mean", "beside_p99", "beside_worst", "expert_bytes")


@dataclass(frozen=True, slots=True)
class Extras:
    """What the report says beside the sweeps: texts in Markdown, empty where there is nothing."""

    profile: str = "cpu"
    coverage: str = ""
    cost: str = ""
    missing_energy: tuple[str, ...] = ()
    wall_s: float | None = None


def write_report(sweeps: Sequence[SweepResult], folder: Path, command: str, extras: Extras) -> Path:
    """Write REPORT.md and its pictures into a folder, beside the sweeps' own folders; return its path."""
    by_name = {sweep.name: sweep for sweep in sweeps}
    parts = [
        *_head(sweeps, command, extras),
        *_claims(by_name, extras.profile),
        *_capacity(by_name),
        *_coverage(extras),
        *_answers(sweeps),
        *_losses(sweeps),
        *(line for sweep in sweeps for line in _study(sweep, folder)),
        *_cost(extras),
        *_not_measured(extras),
    ]
    path = folder / "REPORT.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _head(sweeps: Sequence[SweepResult], command: str, extras: Extras) -> Iterator[str]:
    made = sweeps[0].cells[0].record.made_with
    machine = made["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    took = "" if extras.wall_s is None else f" It took {extras.wall_s / 60:.0f} minutes."
    yield "# The paper's tables and figures, measured here"
    yield f"Made by `{command}` at commit `{made['commit']}`; do not edit.{took}"
    yield (
        f"Machine: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, GPUs:"
        f" {', '.join(machine['gpus']) or 'none'}. Versions: {versions}. Every figure is computed from the"
        " raw times in the records beside this file; intervals are of 95 %, over rounds that had the same"
        " prompts in every arm. The paper (arXiv 2510.08055) used two H100, Qwen3-30B-A3B and gpt-oss-20b;"
        " without a GPU models, lengths, chunks and rates are scaled down, so **ratios** can be compared and"
        " nothing else."
    )


def _claims(sweeps: Mapping[str, SweepResult], profile: str) -> Iterator[str]:
    yield "## The paper's numbers and ours"
    yield to_markdown(
        ("where", "what", "the paper", "here", "the difference"),
        [(row.where, row.what, row.paper, row.ours, row.why) for row in claims.rows(sweeps, profile)],
    )
    yield f"{claims.chunk_of(profile)} stands for the paper's chunks of 512 tokens."


def _capacity(sweeps: Mapping[str, SweepResult]) -> Iterator[str]:
    rows = list(capacity.rows(sweeps))
    if rows:
        yield "### Capacity at 90 % attainment, requests/s"
        yield to_markdown(("load", "where attainment crosses 90 %"), rows)
        yield (
            "The paper, chunked to layered: 1.5 to 1.7 or more (Qwen, arXiv), 4.4 to 4.8 (Qwen, ShareGPT),"
            " 2.3 to 2.7 (GPT, arXiv), 6.2 to 6.4 or more (GPT, ShareGPT). Every gap of a request counts."
        )


def _coverage(extras: Extras) -> Iterator[str]:
    if extras.coverage:
        yield "### Expert coverage: random routers and calibrated ones"
        yield extras.coverage


def _answers(sweeps: Sequence[SweepResult]) -> Iterator[str]:
    yield "## By how much layered prefill wins"
    yield to_markdown(answers.DUEL_HEADER, list(answers.duel_rows(sweeps)))
    yield "Changes against the baseline, with intervals; arms are chosen by their means."
    yield "### Limits on the worst TBT, from tight to loose"
    yield to_markdown(answers.LIMIT_HEADER, list(answers.limit_rows(sweeps)))


def _losses(sweeps: Sequence[SweepResult]) -> Iterator[str]:
    yield "## Where layered prefill loses"
    rows: list[tuple[str, ...]] = []
    counts = [0] * len(VERDICTS)
    for sweep in sweeps:
        if RIVAL_MODE not in {cell.mode for cell in sweep.cells}:
            continue
        seen = outcomes(sweep, baseline_of(sweep), JUDGED)
        counts = [count + getattr(seen, name) for name, count in zip(VERDICTS, counts, strict=True)]
        rows += [(sweep.name, loss.where, loss.arm, loss.what, loss.detail) for loss in seen.losses]
    numbers = ", ".join(f"{count} {name}" for name, count in zip(VERDICTS, counts, strict=True))
    yield (
        f"Verdicts on the layered arms against each study's first arm: {numbers}. One of twenty is wrong"
        " by chance. Every lost comparison and every lost duel:"
    )
    yield to_markdown(("study", "point", "arm", "in", "ratio"), rows) if rows else "None was lost."


def _study(sweep: SweepResult, folder: Path) -> Iterator[str]:
    baseline = baseline_of(sweep)
    yield f"## {sweep.title}"
    records = f"Records: [{sweep.name}/]({sweep.name}/)."
    missing = f" {sweep.num_missing} cells have none." if sweep.num_missing else ""
    yield f"{records}{missing} Baseline: {baseline}."
    for point in sweep.points:
        cells = sweep.at(point)
        has_background = any(cell.has_background for cell in cells)
        yield f"**{point_text(point)}**"
        yield scalar_table(sweep, point, baseline, SHOWN_BESIDE if has_background else SHOWN).markdown()
    yield from _pictures(sweep, baseline, folder)


def _pictures(sweep: SweepResult, baseline: str, folder: Path) -> Iterator[str]:
    """Over rates where there are several, with those of the rate in the middle; else of every point."""
    points = sweep.points
    if len(sweep.grid.get(capacity.RATE, ())) > 1:
        points = [points[len(points) // 2]]
    drawn = [each for point in points for each in pictures_at(sweep, point, baseline)]
    for picture in (*pictures_over_rates(sweep), *drawn):
        if isinstance(picture, Missing):
            if "over the rate" not in picture.title:  # a study of one rate needs no such picture
                yield f"No picture of {picture.title}: {picture.why}"
        else:
            name = picture.save(folder / PICTURES).name
            yield f"![{picture.title}]({PICTURES}/{name})\n\n{picture.caption}"


def _cost(extras: Extras) -> Iterator[str]:
    if extras.cost:
        yield "## Scale on paper: predicted, not measured"
        yield extras.cost


def _not_measured(extras: Extras) -> Iterator[str]:
    yield "## Not measured"
    lines = [
        "pd-multiplexing, concurrent execution, POD attention: they need a GPU.",
        "gpt-oss-20b itself: 16 experts, 2 of them used, stand for it.",
        *(f"Energy: {why}" for why in extras.missing_energy),
    ]
    yield "\n".join(f"- {line}" for line in lines)


def coverage_text(record: Path) -> str:
    """The table of `calibrate-router`, from the record in the model's folder."""
    document: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    rows = []
    for row in document["coverage"]:
        target = row["target"]
        numbers = [target["coverage"], row["uniform"]["mean"], row["calibrated"]["mean"]]
        name = "decode rows" if target["kind"] == DECODE else "tokens of one prompt"
        rows.append((f"{target['num_tokens']} {name}", *(f"{100 * each:.1f} %" for each in numbers)))
    return to_markdown(("tokens of one step", "the paper", "random routers", "calibrated routers"), rows)
