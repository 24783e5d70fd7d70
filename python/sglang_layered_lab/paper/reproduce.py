"""All studies of a profile, one after another on servers that they share; then the report."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sglang_layered.energy.find import find_sources
from sglang_layered.files import check_output
from sglang_layered_lab.bench import report as html_report
from sglang_layered_lab.bench.run import model_folder
from sglang_layered_lab.bench.spec import MakeModelSpec
from sglang_layered_lab.bench.sweep import Turn, pool_for, run_sweep
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.models.router_topics import RECORD_NAME
from sglang_layered_lab.paper.report import Extras, coverage_text, write_report
from sglang_layered_lab.paper.scale import FIT, cost_text
from sglang_layered_lab.paper.studies import Study, read_studies

HTML = "html"


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


def reproduce(plan: Plan, console: Console) -> Path:
    """Run what is missing, write the report, publish it; return the report's path.

    Raises:
        BenchError: a spec is bad or a run fails; what was run stays and is gone on with.
    """
    begun_s = time.monotonic()
    energy_flags, no_energy = _energy()
    studies = read_studies(plan.specs, fast=plan.fast, only=plan.only, more_flags=energy_flags)
    check_output(plan.work / "REPORT.md", "--out")
    if plan.publish is not None:
        check_output(plan.publish.parent / "REPORT.md", "--publish")
    is_whole = plan.restart or not any((plan.work / study.name).exists() for study in studies)
    _make_models(studies)
    results = _run(plan, studies, console)
    extras = Extras(
        profile=plan.profile,
        coverage=_coverage(studies),
        cost=cost_text(results, plan.work),
        missing_energy=no_energy,
        wall_s=time.monotonic() - begun_s if is_whole else None,
    )
    path = write_report(results, plan.work, plan.command, extras)
    html_report.write_report([plan.work / study.name for study in studies], plan.work / HTML)
    return path if plan.publish is None else _publish(plan.work, plan.publish, studies)


def _run(plan: Plan, studies: tuple[Study, ...], console: Console) -> list[SweepResult]:
    """Run what is missing of every study, on servers that they share."""

    def tell(turn: Turn) -> None:
        name = turn.cell.spec.run.name
        console.print(f"{turn.number}/{turn.total}: {name}", highlight=False, soft_wrap=True)

    results = []
    with pool_for([study.spec for study in studies], plan.work / "logs") as pool:
        for study in studies:
            console.print(study.name, highlight=False)
            folder = plan.work / study.name
            results.append(run_sweep(study.spec, folder, pool=pool, restart=plan.restart, tell=tell))
    return results


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


def _publish(work: Path, target: Path, studies: tuple[Study, ...]) -> Path:
    """Put report, pictures and records in place of what was published before."""
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for study in studies:
        shutil.copytree(work / study.name, new / study.name, ignore=shutil.ignore_patterns("*.log"))
    shutil.copytree(work / "pictures", new / "pictures")
    for name in ("REPORT.md", FIT):
        if (work / name).exists():
            shutil.copy2(work / name, new / name)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target / "REPORT.md"
