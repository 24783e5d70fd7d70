"""`sglang-layered simulate`: many replicas in simulated time. Starts no server."""

from pathlib import Path

import click
from rich.console import Console


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the record here, as JSON.")
def simulate(spec: Path, out: Path | None) -> None:
    """Simulate the arms of SPEC, a TOML file: policies, routers and numbers of replicas.

    Replicas run the scheduler's rules and the policies' own classes; steps take what a recorded trace says,
    or a device's least. The same seed gives the same record.
    """
    import json

    from sglang_layered.files import check_output
    from sglang_layered_lab.bench.spec_errors import located
    from sglang_layered_lab.cluster.report import capacities, record_of, table_of
    from sglang_layered_lab.cluster.report import simulate as run
    from sglang_layered_lab.cluster.spec import read_simulation

    if out:
        check_output(out)
    simulation = read_simulation(spec)
    with located(spec):
        found = run(simulation, lambda cell: click.echo(f"{cell.arm} {cell.point or ''}".strip(), err=True))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table_of(simulation, found))
    for arm, rates in capacities(found).items():
        console.print(
            f"{arm}: 90 % at {', '.join(f'{rate} requests/s {name}' for name, rate in rates.items())}"
        )
    num_steps = sum(each.figures.num_steps for each in found)
    took_s = sum(each.figures.num_steps / each.steps_per_s for each in found)
    console.print(f"{num_steps:,} steps simulated in {took_s:.1f} s: {num_steps / took_s:,.0f} a second")
    if out:
        out.write_text(json.dumps(record_of(simulation, found), indent=1) + "\n")
        console.print(f"wrote {out}", highlight=False, soft_wrap=True)
