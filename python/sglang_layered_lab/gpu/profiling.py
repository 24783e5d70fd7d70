"""SGLang's profiler on the arms of a sweep: kernels of a prompt's steps, and of decode steps around them.

`python -m sglang_layered_lab.gpu.profiling SWEEP.toml`: each arm runs its load, one prompt beside streams, at
the first point of the grid; once to warm up, and once more under the profiler.
"""

import gzip
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx
import torch
from rich.console import Console
from rich.table import Table

from sglang_layered.errors import LabError, LayeredPrefillError
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.run import Load, Server, made_with, model_folder, run_repetition, serving
from sglang_layered_lab.bench.server_state import flush_cache
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.sweep_spec import Cell, read_sweep
from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.records import way_of
from sglang_layered_lab.cost.roofline import H200, Roofline
from sglang_layered_lab.cost.sizes import named
from sglang_layered_lab.cost.ways import Beside, prompt_steps
from sglang_layered_lab.gpu.kernel_parts import step_times
from sglang_layered_lab.gpu.profile_table import HEADINGS, LEGEND, Profile, profile_rows
from sglang_layered_lab.models.recipe import ModelRecipe
from sglang_layered_lab.serving import end_servers_on_signals

SPARE_STEPS = 60  # decode steps before the prompt arrives, and after it
TRACE_WAIT_S = 180.0


@click.command()
@click.argument("sweep_path", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/profile"), show_default=True)
@click.option(
    "--coverage",
    type=click.Choice(list(COVERAGES)),
    help="Of the roofline.  [default: paper where prompts keep to topics, else uniform]",
)
def main(sweep_path: Path, out: Path, coverage: str | None) -> None:
    """Say where the time of each arm's steps goes, by kernels; arms that have a file in OUT are done."""
    end_servers_on_signals()
    sweep = read_sweep(sweep_path)
    table = Table(*HEADINGS, caption=LEGEND)
    for cell in sweep.cells[: len(sweep.arms)]:
        shape = named(str(model_folder(cell.spec)))
        path = out / f"{sweep.settings.name}-{cell.arm.name}.json"
        if not path.exists():
            seen = profile(cell, shape, out)
            rows = list(profile_rows(seen, _model(cell.spec, shape, coverage)))
            document = {"made_with": made_with(), "spec": cell.spec.to_json(), "profile": asdict(seen)}
            path.write_text(json.dumps(document | {"table": rows}) + "\n")
        for row in json.loads(path.read_text())["table"]:
            table.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(table)


def _model(spec: BenchSpec, shape: ModelRecipe, coverage: str | None) -> Roofline | None:
    """The roofline of one H200; without a GPU there is none."""
    name = coverage or ("paper" if spec.workload.topics else "uniform")
    return Roofline(shape, COVERAGES[name], H200) if torch.cuda.is_available() else None


def profile(cell: Cell, shape: ModelRecipe, folder: Path) -> Profile:
    """Run one arm's load twice, the second time under the profiler.

    Raises:
        LabError: the load is not one prompt, or the trace does not hold its steps and decode steps.
    """
    load, name = Load.of(cell.spec), cell.spec.run.name
    if cell.spec.load.num_requests != 1 or not cell.spec.load.is_closed:
        raise LabError(f"{name}: the load is not one prompt; set a closed load with num_requests = 1")
    traces = folder / f"{name}-traces"
    with serving(cell.spec, folder / f"{name}.log") as server:
        warm = BenchRecord(cell.spec.to_json(), made_with(), (run_repetition(load, server, 0),))
        [prompt] = load.planned(1, server)
        beside = Beside(len(warm.repetitions[0].background))
        way = way_of(warm, len(prompt.prompt), shape.num_layers)
        num_steps = len(prompt_steps(shape.num_layers, way, len(prompt.prompt), beside))
        beside = _profiled(load, server, partial(_start, server.url, traces, num_steps + SPARE_STEPS))
        events = _trace(traces)
    decode, prompts = step_times(events, "cuda" if torch.cuda.is_available() else "cpu")
    if prompts.num_steps != num_steps or not decode.num_steps:
        raise LabError(
            f"{name}: of the prompt's {num_steps} steps the trace has {prompts.num_steps}, of decode steps"
            f" {decode.num_steps}; run it again"
        )
    return Profile(cell.arm.name, way, len(prompt.prompt), beside, decode, prompts)


def _profiled(load: Load, server: Server, start: partial[None]) -> Beside:
    """Run the load with the profiler started when the streams decode; the streams as they were at the end."""
    flush_cache(server.url)
    spec = load.spec
    result = run_client(
        server.url,
        load.planned(1, server),
        timeout_s=spec.run.timeout_s,
        num_clients=spec.load.num_clients,
        on_ready=start,
        background=load.background(1, server),
    )
    seen = [each.prompt_tokens + each.arrivals[-1].num_tokens for each in result.background]
    return Beside(len(seen), median(seen or [0]))


def _start(url: str, folder: Path, num_steps: int) -> None:
    """Profile the next steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.gz"):
        old.unlink()
    activities = ["CPU", "GPU"] if torch.cuda.is_available() else ["CPU"]
    order = {"output_dir": str(folder.resolve()), "num_steps": num_steps, "activities": activities}
    reply = httpx.post(f"{url}/start_profile", json=order, timeout=60, trust_env=False)
    if reply.status_code != httpx.codes.OK:
        raise LabError(f"/start_profile answered {reply.status_code}: {reply.text[:300]}")


def _trace(folder: Path) -> list[dict[str, Any]]:
    """The trace's events, once all of it is there."""
    end_s = time.monotonic() + TRACE_WAIT_S
    while time.monotonic() < end_s:
        try:
            [path] = folder.glob("*.trace.json.gz")
            events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            return events
        except (ValueError, EOFError, OSError):  # not there, or not whole
            time.sleep(0.5)
    raise LabError(f"SGLang's profiler wrote no trace to {folder}; its server's log says why")


if __name__ == "__main__":
    try:
        main()
    except LayeredPrefillError as error:
        raise SystemExit(f"profiling: {error}") from error
