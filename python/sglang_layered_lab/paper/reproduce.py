"""All studies of a profile, one after another on servers that they share; then the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sglang_layered.energy.find import find_sources
from sglang_layered.errors import BenchError, ConfigError
from sglang_layered.writable import check_writable
from sglang_layered_lab.bench import report as html_report
from sglang_layered_lab.bench.run import model_folder
from sglang_layered_lab.bench.spec import MakeModelSpec
from sglang_layered_lab.bench.sweep import Turn, pool_for, run_sweep
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.tables import to_markdown
from sglang_layered_lab.cost.paper import compare_run_times
from sglang_layered_lab.cost.report import FitReport, fit_sweeps, write_fit
from sglang_layered_lab.cost.tables import fit_tables
from sglang_layered_lab.cost.ways import Way
from sglang_layered_lab.models.router_topics import RECORD_NAME
from sglang_layered_lab.paper.exact import exact_attention_table
from sglang_layered_lab.paper.report import Extras, coverage_text, markdown_of, write_report
from sglang_layered_lab.paper.studies import Study, read_studies

COST_STUDY = "beside"
CONTEXT_TOKENS = 256  # that a decode row of that study sees, about
HTML = "html"

Tell = Callable[[Study, Turn], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to reproduce. `work` keeps what was run; `publish` gets report, pictures, records at the end."""

    profile: str
    specs: Path
    work: Path
    publish: Path | None
    command: str
    fast: bool = False
    only: tuple[str, ...] = ()
    restart: bool = False


def reproduce(plan: Plan, console: Console, tell: Tell) -> Path:
    """Run what is missing, write the report, publish it; return the report's path.

    Raises:
        BenchError: a spec is bad or a run fails; what was run stays and is gone on with.
    """
    begun_s = time.monotonic()
    energy_flags, no_energy = _energy()
    studies = read_studies(plan.specs, fast=plan.fast, only=plan.only, more_flags=energy_flags)
    check_writable(plan.work / "REPORT.md", "--out")
    if plan.publish is not None:
        check_writable(plan.publish.parent / "REPORT.md", "--publish")
    is_whole = not any((plan.work / study.name).exists() for study in studies)
    _make_models(studies)
    results = []
    with pool_for([study.spec for study in studies], plan.work / "logs") as pool:
        for study in studies:
            folder = plan.work / study.name
            run_sweep(
                study.spec,
                folder,
                pool=pool,
                restart=plan.restart,
                tell=lambda turn, study=study: tell(study, turn),  # type: ignore[misc]
            )
            results.append(SweepResult.read(folder))
            console.print(f"{study.name}: done", highlight=False)
    extras = Extras(
        profile=plan.profile,
        coverage=_coverage(studies),
        cost=_cost(results, plan.work),
        missing_energy=no_energy,
        wall_s=time.monotonic() - begun_s if is_whole or plan.restart else None,
    )
    path = write_report(results, plan.work, plan.command, extras)
    html_report.write_report([plan.work / study.name for study in studies], plan.work / HTML)
    return path if plan.publish is None else _publish(plan.work, plan.publish, studies)


def _make_models(studies: tuple[Study, ...]) -> None:
    """Before any server takes memory: calibrating routers runs the model here."""
    for study in studies:
        for cell in study.spec.cells:
            if cell.spec.server.url is None:
                model_folder(cell.spec)


def _energy() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The flag that measures energy where something can be read, else why nothing can."""
    found = find_sources(None)
    if found.sources:
        return ("--enable-energy-metrics",), ()
    return (), tuple(str(each) for each in found.missing) or ("nothing on this machine counts it.",)


def _coverage(studies: tuple[Study, ...]) -> str:
    for study in studies:
        spec = study.spec.cells[0].spec
        if isinstance(spec.server.model, MakeModelSpec) and spec.server.model.routers == "paper":
            return coverage_text(model_folder(spec) / RECORD_NAME)
    return ""


def _cost(results: list[SweepResult], work: Path) -> str:
    chosen = [result for result in results if result.name == COST_STUDY]
    if not chosen:
        return ""
    try:
        fitted = fit_sweeps(chosen)
    except (BenchError, ConfigError) as error:
        return f"No model was fitted: {error}"
    write_fit(fitted, work / "cost-fit.json")
    texts = [markdown_of(table) for table in fit_tables(fitted)]
    return "\n\n".join([*texts, _exact_attention(fitted), _paper_run_times()])


def _exact_attention(fitted: FitReport) -> str:
    seen = fitted.fit.seen
    if seen is None:
        return ""
    ways = [
        Way("whole"),
        *(Way("mixed", size) for size in (64, 256, 512)),
        *(Way("layered", groups) for groups in (2, 4, 8)),
    ]
    tokens = seen.prompt_tokens[1]
    table = exact_attention_table(fitted.fit, ways, tokens, seen.decode_rows, CONTEXT_TOKENS)
    return (
        f"**A prompt of {tokens} tokens, predicted, with the CPU's attention and with an exact one**\n\n"
        "SGLang's attention on a CPU computes the cached rows of a chunk again, which a GPU's does not: part"
        " of what chunks lose above is due to that. Whole prompts and layer groups are not touched by it.\n\n"
        f"{table}"
    )


def _paper_run_times() -> str:
    """Figure 2 beside what the model predicts of it."""
    header = ("chunk", "the paper, ms", "predicted: H100's rates", "predicted: fit to the other chunk sizes")
    rows = [
        (
            str(row.chunk_tokens),
            *(f"{1e3 * each:.0f}" for each in (row.paper_s, row.roofline_s, row.held_out_s)),
        )
        for row in compare_run_times()
    ]
    title = "**Run time of an 8192-token prompt on two H100 (Fig. 2): the paper's and predicted**"
    return f"{title}\n\n{to_markdown(header, rows)}"


def _publish(work: Path, target: Path, studies: tuple[Study, ...]) -> Path:
    """Put report, pictures and records in place of what was published before."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for study in studies:
        shutil.copytree(work / study.name, new / study.name, ignore=shutil.ignore_patterns("*.log"))
    shutil.copytree(work / "pictures", new / "pictures")
    for name in ("REPORT.md", "cost-fit.json"):
        if (work / name).exists():
            shutil.copy2(work / name, new / name)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target / "REPORT.md"
