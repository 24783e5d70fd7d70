"""`sglang-layered bench capacity`: options and what was found."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from sglang_layered_lab.cli.stopped import said_when_stopped


@click.command()
@click.argument("spec_path", metavar="SPEC.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: out/capacity/NAME]")
@click.option("--target", default=0.9, show_default=True, help="Share of requests within every limit.")
@click.option(
    "--tolerance", default=0.05, show_default=True, help="How near the bracket's ends are at the end."
)
@click.option("--max-runs", default=16, show_default=True, help="Rates to run at most.")
def capacity(spec_path: Path, out: Path | None, target: float, tolerance: float, max_runs: int) -> None:
    """Find the request rate at which 90 % of the requests still meet the limits of SPEC.toml, by bisection.

    It begins with the spec's own rate. Rates that were run already are not run again.
    """
    from sglang_layered_lab.bench.capacity import Search
    from sglang_layered_lab.bench.capacity_run import check, run_capacity
    from sglang_layered_lab.bench.spec import read_spec
    from sglang_layered_lab.bench.spec_errors import located
    from sglang_layered_lab.serving import end_servers_on_signals

    end_servers_on_signals()
    console = Console(highlight=False)
    spec = read_spec(spec_path)
    with located(spec_path):
        check(spec)
        assert spec.load.rate_per_s is not None
        search = Search((spec.load.rate_per_s,), target=target, tolerance=tolerance, max_runs=max_runs)
        folder = out or Path("out") / "capacity" / spec.run.name

        def tell(rate_rps: float, share: float) -> None:
            console.print(f"{rate_rps:.4g} requests/s: {100 * share:.1f} % within the limits", soft_wrap=True)

        kept = f"rates that were run are kept in {folder}, the one that ran is lost. The same command goes on"
        with said_when_stopped(lambda: kept):
            found = run_capacity(spec, search, folder, tell)
    rate = "none that was run" if found.rate_rps is None else f"{found.rate_rps:.4g} requests/s"
    console.print(f"capacity at {100 * target:g} %: {rate} ({found.status}); wrote {folder}", soft_wrap=True)
    for low, high in found.contradictions:
        console.print(f"contradiction: {low.rate_rps:.4g} missed the target, {high.rate_rps:.4g} met it")
