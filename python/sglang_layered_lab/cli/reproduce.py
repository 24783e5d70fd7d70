"""`sglang-layered reproduce`: options and progress."""

from pathlib import Path

import click
from rich.console import Console

PROFILES = ("cpu", "h200")


@click.command()
@click.option("--profile", type=click.Choice(PROFILES), required=True, help="Sizes that suit the machine.")
@click.option("--fast", is_flag=True, help="Few arms and requests: shows that everything works, no more.")
@click.option("--only", multiple=True, metavar="STUDY", help="Only this study; may be repeated.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Working folder.  [default: out/reproduce/PROFILE]"
)
@click.option(
    "--publish",
    type=click.Path(path_type=Path),
    help="Put report, pictures and records here at the end.  [default: results/PROFILE if all was run]",
)
@click.option("--specs", type=click.Path(path_type=Path), help="Studies.  [default: scripts/paper/PROFILE]")
@click.option("--restart", is_flag=True, help="Run everything anew instead of going on with what is there.")
def reproduce(
    profile: str,
    fast: bool,
    only: tuple[str, ...],
    out: Path | None,
    publish: Path | None,
    specs: Path | None,
    restart: bool,
) -> None:
    """Measure the paper's tables and figures on this machine and write REPORT.md.

    Run it from the root of the checkout. What was run already is gone on with.
    """
    from sglang_layered_lab.paper.reproduce import Plan, reproduce
    from sglang_layered_lab.serving import end_servers_on_signals

    end_servers_on_signals()
    console = Console()
    words = [f"--profile {profile}", *(["--fast"] if fast else []), *(f"--only {name}" for name in only)]
    if publish is None and not fast and not only:
        publish = Path("results") / profile
    plan = Plan(
        profile=profile,
        specs=specs or Path("scripts") / "paper" / profile,
        work=out or Path("out") / "reproduce" / (f"{profile}-fast" if fast else profile),
        publish=publish,
        command=" ".join(["scripts/reproduce.sh", *words]),
        fast=fast,
        only=only,
        restart=restart,
    )
    path = reproduce(plan, console)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
