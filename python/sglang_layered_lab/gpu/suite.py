"""`scripts/gpu/suite`: one command a stage, each unattended and within a time limit; then table and pictures.

Knows options, records and wording. The stages are in `stages` and `correct`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from sglang_layered.errors import LayeredPrefillError
from sglang_layered_lab.gpu.budget import Budget, BudgetSpent
from sglang_layered_lab.gpu.correct import correct
from sglang_layered_lab.gpu.coverage import coverage
from sglang_layered_lab.gpu.pareto import pictures
from sglang_layered_lab.gpu.profiles import PROFILES
from sglang_layered_lab.gpu.profiling import profile
from sglang_layered_lab.gpu.records import StageRecord, open_record, read_records
from sglang_layered_lab.gpu.report import document, equal_table, plain, stage_table
from sglang_layered_lab.gpu.risks import advice
from sglang_layered_lab.gpu.stages import Job, Stage, kernels, serve, smoke, step

HARD_LIMIT_S = 470
STAGES: dict[str, Stage] = {
    "smoke": smoke,
    "correct": correct,
    "kernels": kernels,
    "step": step,
    "serve": serve,
    "profile": profile,
    "coverage": coverage,
}
RESULTS = Path("results/h200")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Check and measure on a GPU host, stage by stage. Run a stage again to go on where it stopped."""


def run_stage(stage: Stage, job: Job) -> StageRecord:
    """Run a stage within its time; the record says how it ended."""
    record, began_s = job.record, time.monotonic()
    record.status, record.problem = "partial", ""
    try:
        with job.budget.enforced():
            stage(job)
        record.status = "partial" if job.only else "done"
    except BudgetSpent:
        record.problem = "time is up; run the same command again to go on"
    except Exception as error:  # whatever it was, the rows so far are kept and the next stage can run
        record.status, record.problem = "failed", f"{type(error).__name__}: {error}"
    record.elapsed_s += round(time.monotonic() - began_s, 1)
    record.write()
    return record


def show(record: StageRecord) -> None:
    """Print the problem with what to try, then the table, then one line."""
    if record.problem:
        click.echo(record.problem)
    if record.status == "failed":
        click.echo(advice(record.problem))
    click.echo(plain(stage_table(record)))
    if record.stage == "step":
        click.echo(plain(equal_table(record)))
    click.echo(f"{record.stage}: {record.status}, {len(record.rows)} rows in {record.path}")


def _environment() -> dict[str, Any]:
    from sglang_layered_lab.quickstart.record import current_commit, installed_versions, this_machine

    return {"versions": installed_versions(), "machine": this_machine(), "commit": current_commit()}


def _command(name: str, stage: Stage) -> click.Command:
    @click.command(name, help=stage.__doc__)
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path("out/h200"),
        show_default=True,
        help="Folder of the records; logs go to OUT/logs.",
    )
    @click.option("--profile", type=click.Choice(list(PROFILES)), default="gpu", show_default=True)
    @click.option(
        "--budget-s",
        type=click.IntRange(5, HARD_LIMIT_S),
        default=450,
        show_default=True,
        help="Hard limit of this command.",
    )
    @click.option("--again", is_flag=True, help="Begin anew; what the record has is lost.")
    @click.option(
        "--only", multiple=True, help="Only this arm (correct: checks that begin so); may be repeated."
    )
    def command(out: Path, profile: str, budget_s: int, again: bool, only: tuple[str, ...]) -> None:
        record = open_record(out, name, profile, again=again)
        if record.is_done:
            click.echo(f"{name} is done; --again begins anew")
        else:
            record.environment = _environment()
            run_stage(stage, Job(record, PROFILES[profile], out / "logs", Budget(budget_s), only))
        show(record)
        if record.status == "failed":
            raise SystemExit(1)

    return command


for _name, _stage in STAGES.items():
    main.add_command(_command(_name, _stage))


@main.command()
@click.option("--records", type=click.Path(path_type=Path, exists=True), default=RESULTS, show_default=True)
@click.option(
    "--check", is_flag=True, help="Change nothing; exit status 1 when README.md is not what it would be."
)
def table(records: Path, check: bool) -> None:
    """Write README.md in the folder of the records, from every record in it and below."""
    text, path = document(read_records(records)), records / "README.md"
    if not check:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        raise click.ClickException(f"{path} is not up to date; run scripts/gpu/suite table")


@main.command()
@click.option("--records", type=click.Path(path_type=Path, exists=True), default=RESULTS, show_default=True)
def pareto(records: Path) -> None:
    """Draw TTFT against the gaps of running streams, one picture a load, beside each record of stage step."""
    for record in read_records(records):
        if record.stage == "step" and record.path is not None:
            for picture in pictures(record):
                click.echo(str(picture.save(record.path.parent)))


if __name__ == "__main__":
    try:
        main(prog_name="suite")
    except LayeredPrefillError as error:
        raise SystemExit(f"suite: {error}") from error
