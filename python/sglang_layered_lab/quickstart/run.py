"""Runs the quickstart: model, one server per mode one after another, records, table, picture.

What it writes is the folder of a sweep, which `sglang-layered bench report` reads as well.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sglang_layered.errors import BenchError, LabError
from sglang_layered.patching import locate, verify_patched
from sglang_layered.upstream.cpu_kernels import cuda_driver_available
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.run import Load, Tell, made_with, model_folder, run_repetition, started
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import parse_toml
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.sweep_spec import Cell, SweepSpec, sweep_from
from sglang_layered_lab.quickstart import SIZES
from sglang_layered_lab.quickstart.board import Board
from sglang_layered_lab.quickstart.figures import draw, last_line, measure, table
from sglang_layered_lab.quickstart.machine import Machine, fastest, size_for
from sglang_layered_lab.quickstart.replay import write_replay
from sglang_layered_lab.serving import ServerProcess, measured_attention, measured_flags

SPEC = Path(__file__).with_name("quickstart.toml")
PICTURE = "tokens.png"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the quickstart is to do."""

    spec: SweepSpec
    out: Path
    port: int | None = None  # None: any free one
    keep: bool = False  # leave the last server running
    page: Path | None = None  # written where it is given


def scenario(
    modes: Sequence[str] = (),
    *,
    repetitions: int = 3,
    dtype: str = "bfloat16",
    size: str = "full",
    model_path: Path | None = None,
) -> SweepSpec:
    """The sweep of `quickstart.toml`, for so many repetitions, a data type, a size of `SIZES` and a model.

    Raises:
        SpecError: one of them cannot be.
    """
    values = parse_toml(SPEC.read_text(encoding="utf-8"))
    values["sweep"]["rounds"] = repetitions
    values["server"]["flags"] += ["--dtype", dtype]
    values["arms"] = [arm for arm in values["arms"] if not modes or arm["mode"] in modes]
    lengths, background = values["workload"]["lengths"], values["load"]["background"]
    background["prompt_tokens"] = background["prompt_tokens"] * SIZES[size] // lengths["prompt"]["tokens"]
    lengths["prompt"]["tokens"] = SIZES[size]
    if model_path is not None:
        values["server"]["model"] = str(model_path)
    return sweep_from(values, SPEC.parent)


def run(plan: Plan, console: Console) -> SweepResult:
    """Do the whole quickstart and print it; the last line is the verdict."""
    cells = plan.spec.cells
    check_machine([cell.arm.mode for cell in cells], console)
    plan.out.mkdir(parents=True, exist_ok=True)
    background = cells[0].spec.load.background
    assert background is not None  # quickstart.toml has one
    with Board(console, {cell.arm.mode: cell.arm.label for cell in cells}, background.num_streams) as board:
        with board.phase("the model"):
            model = model_folder(cells[0].spec)
        for cell in cells:
            record = _run_mode(plan, cell, model, keep=plan.keep and cell is cells[-1], board=board)
            record.write(plan.out / cell.file_name)
    (plan.out / MANIFEST).write_text(json.dumps({"format": FORMAT} | plan.spec.to_json(), indent=1) + "\n")
    result = SweepResult.read(plan.out)
    caption = draw(result, plan.out / PICTURE)
    peak = max(cell.record.made_with["server"]["memory_bytes"] for cell in result.cells)
    console.print()
    console.print(table(result))
    _print(
        console,
        *(f"{cell.mode}: {cell.label}" for cell in result.cells),
        f"memory of a server: {peak / 2**30:.1f} GiB",
        f"records: {plan.out}   picture: {plan.out / PICTURE}",
        caption,
        *([f"page: {write_replay(plan.out, plan.page)}"] if plan.page else []),
        last_line(result),
    )
    return result


def check_machine(modes: Sequence[str], console: Console) -> None:
    """Raise for what cannot work here; warn about what may not.

    Raises:
        PatchError: there is no SGLang, or it is to serve layered mode or our attention and is not patched.
    """
    if "layered" in modes or measured_attention() is not None:
        verify_patched()
    else:
        locate()
    if not cuda_driver_available() and shutil.which("g++") is None:
        _print(
            console,
            "warning: no g++ here. The quickstart does without, but SGLang compiles penalties and sampling "
            "seeds when a request first asks for them, and dies without it: apt-get install g++",
        )


def chosen(dtype: str, size: str, console: Console) -> tuple[str, str]:
    """What was asked for; for `auto` what suits this machine, told where it is not the usual."""
    if AUTO in (dtype, size):
        machine = Machine.here()
        dtype, dtype_why = fastest(machine) if dtype == AUTO else (dtype, "")
        size, size_why = size_for(machine) if size == AUTO else (size, "")
        told = {dtype: dtype_why, size: size_why}
        _print(console, *(f"{value}: {why}" for value, why in told.items() if why))
    return dtype, size


def _run_mode(plan: Plan, cell: Cell, model: Path, *, keep: bool, board: Board) -> BenchRecord:
    spec, mode = cell.spec, cell.arm.mode
    process = ServerProcess(
        model, measured_flags(spec.server.flags), log_path=plan.out / f"server-{mode}.log", port=plan.port
    )
    start_s = time.perf_counter()
    try:
        with board.phase(f"{mode}: starting the server"):
            process.start()
        startup_s = time.perf_counter() - start_s
        with board.phase(f"{mode}: warming up"), board.running(mode) as tell:  # other tokens; thrown away
            _play(spec, process, model, spec.run.repetitions, tell)
        repetitions: list[Repetition] = []
        memory_bytes = 0
        for index in range(spec.run.repetitions):
            what = f"{mode}: repetition {index + 1} of {spec.run.repetitions}"
            with board.phase(what), board.running(mode) as tell:
                repetitions.append(_play(spec, process, model, index, tell))
            figures = measure(repetitions[-1])
            board.measured(mode, figures["ttft_s"], figures["worst_gap_s"])
            memory_bytes = max(memory_bytes, process.memory_bytes())
    except BaseException:
        process.stop()
        raise
    server = {"command": process.command, "startup_s": round(startup_s, 3), "memory_bytes": memory_bytes}
    if keep:
        _print_kept(process, board)
    else:
        process.stop()
    return BenchRecord(spec.to_json(), made_with() | {"server": server}, tuple(repetitions))


def _play(spec: BenchSpec, process: ServerProcess, model: Path, index: int, tell: Tell | None) -> Repetition:
    try:
        played = run_repetition(Load.of(spec), started(spec, model, process.base_url), index, tell)
        measure(played)  # tells at once what failed
    except (BenchError, LabError) as error:
        raise LabError(f"{error}; {process.log_path} ends with\n{process.log_tail()}") from error
    return played


def _print_kept(process: ServerProcess, board: Board) -> None:
    body = {"model": "quickstart", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    board.say(
        "the server stays up; ask it something with",
        f"  curl {process.base_url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'",
        f"and stop it with  kill {process.pid}",
    )


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
