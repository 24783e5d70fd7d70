"""`sglang-layered bench`: servers under load, kernels by themselves. Timing is done where the work is."""

from pathlib import Path

import click
from rich.console import Console

from sglang_layered.cli.groups import WholeGroup
from sglang_layered.errors import KernelError
from sglang_layered_lab.cli.bench_lengths import lengths
from sglang_layered_lab.cli.bench_limits import limits
from sglang_layered_lab.cli.bench_report import plot, report
from sglang_layered_lab.cli.bench_run import run, show, sweep


@click.group(cls=WholeGroup)
def bench() -> None:
    """Load servers and measure them; time kernels."""


for command in (run, show, sweep, plot, limits, lengths, report):
    bench.add_command(command)


@bench.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where there is a GPU.")
@click.option("--kernel", "names", multiple=True, help="Only this kernel; may be repeated.  [default: all]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/bench/kernels.json"), show_default=True
)
def kernels(device: str | None, names: tuple[str, ...], out: Path) -> None:
    """Time each kernel of `kernels/`: table here, JSON to OUT.

    The last column is the least possible time by the device's peak bandwidth and bf16 FLOP/s over the median
    time; "-" for a device whose peaks are not known.
    """
    from sglang_layered_kernels.bench import table, time_kernel, write_record  # imports torch
    from sglang_layered_kernels.registry import kernels_with_bench

    from sglang_layered.files import check_output

    check_output(out)
    device = _usable(device)
    console = Console(width=None if Console().is_terminal else 140)
    rows = []
    for name in names or kernels_with_bench():
        timed = list(time_kernel(name, device))
        rows += timed
        if not timed:
            console.print(f"{name}: has no case on {device}")
    if not rows:
        raise KernelError(f"nothing to time on --device {device}; choose another kernel or device")
    console.print(table(rows, device))
    write_record(rows, device, out)
    console.print(f"wrote {out}")


def _usable(device: str | None) -> str:
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise KernelError("--device cuda: torch finds no CUDA GPU here; use --device cpu")
    return device or ("cuda" if has_gpu else "cpu")
