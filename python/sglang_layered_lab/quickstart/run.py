"""Runs the quickstart: model, one server per mode one after another, record, table, picture."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sglang_layered.cpu_kernels import cuda_driver_available
from sglang_layered.errors import BenchError, QuickstartError
from sglang_layered.patching import locate, verify_patched
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.run import Load, made_with, model_folder, run_repetition, started
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import parse_toml
from sglang_layered_lab.bench.sweep_spec import Cell, SweepSpec, sweep_from
from sglang_layered_lab.quickstart import SIZES
from sglang_layered_lab.quickstart.figures import ModeRun, draw, last_line, measure, table
from sglang_layered_lab.quickstart.machine import Machine, fastest, size_for
from sglang_layered_lab.serving import ServerProcess

SPEC = Path(__file__).with_name("quickstart.toml")
SAMPLE_EVERY_S = 1.0
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the quickstart is to do."""

    modes: tuple[str, ...]
    spec: SweepSpec
    out: Path
    port: int | None = None  # None: any free one
    keep: bool = False  # leave the last server running


def scenario(
    *, repetitions: int = 3, dtype: str = "bfloat16", size: str = "full", model_path: Path | None = None
) -> SweepSpec:
    """The sweep of `quickstart.toml`, for so many repetitions, a data type, a size of `SIZES` and a model.

    Raises:
        SpecError: one of them cannot be.
    """
    values = parse_toml(SPEC.read_text(encoding="utf-8"))
    values["sweep"]["rounds"] = repetitions
    values["server"]["flags"] += ["--dtype", dtype]
    lengths, background = values["workload"]["lengths"], values["load"]["background"]
    background["prompt_tokens"] = background["prompt_tokens"] * SIZES[size] // lengths["prompt"]["tokens"]
    lengths["prompt"]["tokens"] = SIZES[size]
    if model_path is not None:
        values["server"]["model"] = str(model_path)
    return sweep_from(values, SPEC.parent)


class PeakMemory:
    """Greatest memory of a server's process tree, sampled while the block runs and when asked."""

    def __init__(self, server: ServerProcess) -> None:
        self.peak_bytes = 0
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Begin to sample."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End sampling."""
        self._stop.set()
        self._thread.join()

    def sample(self) -> None:
        """Look once; a server that is not up counts nothing."""
        if not self._server.has_exited():
            self.peak_bytes = max(self.peak_bytes, self._server.memory_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.sample()


def run(plan: Plan, console: Console) -> list[ModeRun]:
    """Do the whole quickstart and print it; the last line is the verdict."""
    check_machine(plan.modes, console)
    cells = [cell for cell in plan.spec.cells if cell.arm.mode in plan.modes]
    with phase(console, "the model"):
        model = model_folder(cells[0].spec)
    runs = []
    for cell in cells:
        runs.append(_run_mode(plan, cell, model, keep=plan.keep and cell is cells[-1], console=console))
    path = plan.out / "record.json"
    path.write_text(json.dumps({"runs": [each.to_json() for each in runs]}) + "\n")
    draw(runs, plan.out / "tokens.png")
    peak_gib = max(each.peak_memory_bytes for each in runs) / 2**30
    console.print()
    console.print(table(runs))
    _print(
        console,
        *(f"{each.mode}: {each.title}" for each in runs),
        f"peak memory of a server: {peak_gib:.1f} GiB",
        f"record: {path}   picture: {plan.out / 'tokens.png'}",
        last_line(runs),
    )
    return runs


def check_machine(modes: Sequence[str], console: Console) -> None:
    """Raise for what cannot work here; warn about what may not.

    Raises:
        PatchError: there is no SGLang, or it is to serve layered mode and is not patched.
    """
    if "layered" in modes:
        verify_patched()
    else:
        locate()
    if not cuda_driver_available() and shutil.which("g++") is None:
        console.print(
            "warning: no g++ here. The quickstart does without, but SGLang compiles penalties and sampling "
            "seeds when a request first asks for them, and dies without it: apt-get install g++",
            highlight=False,
            soft_wrap=True,
        )


def chosen(dtype: str, size: str, console: Console) -> tuple[str, str]:
    """What was asked for; for `auto` what suits this machine, told where it is not the usual."""
    if AUTO not in (dtype, size):
        return dtype, size
    machine = Machine.here()
    if dtype == AUTO:
        dtype = _told(*fastest(machine), console)
    if size == AUTO:
        size = _told(*size_for(machine), console)
    return dtype, size


def _told(value: str, why: str | None, console: Console) -> str:
    if why is not None:
        console.print(f"{value}: {why}", highlight=False, soft_wrap=True)
    return value


@contextmanager
def phase(console: Console, what: str) -> Iterator[None]:
    """Show what is going on, and afterwards how long it took; plain lines when not a terminal."""
    start_s = time.perf_counter()
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(f"{what} ...", highlight=False, soft_wrap=True)
        yield
    console.print(f"{what}: {time.perf_counter() - start_s:.1f} s", highlight=False, soft_wrap=True)


def _run_mode(plan: Plan, cell: Cell, model: Path, *, keep: bool, console: Console) -> ModeRun:
    spec, mode = cell.spec, cell.arm.mode
    process = ServerProcess(
        model, spec.server.flags, log_path=plan.out / f"server-{mode}.log", port=plan.port
    )
    start_s = time.perf_counter()
    record = BenchRecord(spec.to_json(), made_with())
    try:
        with PeakMemory(process) as memory:  # not while times are taken: sampling costs some milliseconds
            with phase(console, f"{mode}: starting the server"):
                process.start()
            startup_s = time.perf_counter() - start_s
            with phase(console, f"{mode}: warming up"):  # same shapes, other tokens; thrown away
                _play(spec, process, model, spec.run.repetitions)
        for index in range(spec.run.repetitions):
            with phase(console, f"{mode}: repetition {index + 1} of {spec.run.repetitions}"):
                record = record.with_repetition(_play(spec, process, model, index))
            memory.sample()
    except BaseException:
        process.stop()
        raise
    if keep:
        _print_kept(process, console)
    else:
        process.stop()
    return ModeRun(mode, cell.arm.title, tuple(process.command), startup_s, memory.peak_bytes, record)


def _play(spec: BenchSpec, process: ServerProcess, model: Path, index: int) -> Repetition:
    try:
        played = run_repetition(Load.of(spec), started(spec, model, process.base_url), index)
        measure(played)  # tells at once what failed
    except (BenchError, QuickstartError) as error:
        raise QuickstartError(f"{error}; {process.log_path} ends with\n{process.log_tail()}") from error
    return played


def _print_kept(process: ServerProcess, console: Console) -> None:
    body = {"model": "quickstart", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    _print(
        console,
        "the server stays up; ask it something with",
        f"  curl {process.base_url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'",
        f"and stop it with  kill {process.pid}",
    )


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
