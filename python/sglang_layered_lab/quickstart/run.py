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
from sglang_layered.errors import ModelRecipeError, QuickstartError
from sglang_layered.patching import locate, verify_patched
from sglang_layered_lab.models import make_model
from sglang_layered_lab.quickstart import plot, report
from sglang_layered_lab.quickstart.client import play_once
from sglang_layered_lab.quickstart.machine import Machine, fastest, size_for
from sglang_layered_lab.quickstart.metrics import Repetition
from sglang_layered_lab.quickstart.record import (
    ModeRun,
    Record,
    current_commit,
    installed_versions,
    this_machine,
)
from sglang_layered_lab.quickstart.scenario import MODEL_NAME, Scenario
from sglang_layered_lab.serving import ServerProcess

DEFAULT_MODEL_PATH = Path("out/models/qwen3_moe-demo")
WARM_UP = -1  # the repetition that is played first and thrown away: same shapes, other tokens
SAMPLE_EVERY_S = 1.0
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one call of the quickstart is to do."""

    modes: tuple[str, ...]
    scenario: Scenario
    out: Path
    model_path: Path | None = None  # None: the demo model, made if it is not there
    port: int | None = None  # None: any free one
    keep: bool = False  # leave the last server running


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


def run(plan: Plan, console: Console) -> Record:
    """Do the whole quickstart and print it; the last line is the verdict."""
    check_machine(plan.modes, console)
    model_path = ensure_model(plan.model_path, console)
    runs = []
    for mode in plan.modes:
        keep = plan.keep and mode == plan.modes[-1]
        runs.append(_run_mode(plan, mode, model_path, keep=keep, console=console))
    record = Record(
        plan.scenario, str(model_path), installed_versions(), current_commit(), this_machine(), tuple(runs)
    )
    record.write(plan.out / "record.json")
    plot.draw(record, plan.out / "tokens.png")
    _print_results(plan, record, console)
    return record


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


def ensure_model(model_path: Path | None, console: Console) -> Path:
    """Return the model's folder, after making the demo model if no other was named."""
    if model_path is not None:
        if not (model_path / "config.json").exists():
            raise QuickstartError(f"{model_path} holds no config.json; name a model folder")
        return model_path
    with phase(console, f"demo model {DEFAULT_MODEL_PATH}"):
        try:
            return make_model("qwen3_moe", "demo", DEFAULT_MODEL_PATH)  # quick if it is there already
        except ModelRecipeError:  # one of an older recipe, perhaps; force replaces nothing but our own models
            return make_model("qwen3_moe", "demo", DEFAULT_MODEL_PATH, force=True)


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


def _run_mode(plan: Plan, mode: str, model_path: Path, *, keep: bool, console: Console) -> ModeRun:
    server = ServerProcess(
        model_path,
        plan.scenario.server_flags(mode),
        log_path=plan.out / f"server-{mode}.log",
        port=plan.port,
    )
    vocab_size = vocabulary_size(model_path)
    start_s = time.perf_counter()
    try:
        with PeakMemory(server) as memory:  # not while times are taken: sampling costs some milliseconds
            with phase(console, f"{mode}: starting the server"):
                server.start()
            startup_s = time.perf_counter() - start_s
            with phase(console, f"{mode}: warming up"):
                _play(server, plan.scenario, WARM_UP, vocab_size)
        repetitions = _repeat(server, plan.scenario, mode, vocab_size, memory, console)
    except BaseException:
        server.stop()
        raise
    if keep:
        _print_kept(server, console)
    else:
        server.stop()
    return ModeRun(mode, tuple(server.command), startup_s, memory.peak_bytes, tuple(repetitions))


def _repeat(
    server: ServerProcess,
    scenario: Scenario,
    mode: str,
    vocab_size: int,
    memory: PeakMemory,
    console: Console,
) -> list[Repetition]:
    repetitions = []
    for index in range(scenario.repetitions):
        with phase(console, f"{mode}: repetition {index + 1} of {scenario.repetitions}"):
            repetitions.append(_play(server, scenario, index, vocab_size))
        memory.sample()
    return repetitions


def _play(server: ServerProcess, scenario: Scenario, repetition: int, vocab_size: int) -> Repetition:
    try:
        played = play_once(server.base_url, scenario, repetition, vocab_size)
        server.flush_cache()
    except QuickstartError as error:
        raise QuickstartError(f"{error}; {server.log_path} ends with\n{server.log_tail()}") from error
    return played


def vocabulary_size(model_path: Path) -> int:
    """Read the vocabulary's size from the model's config."""
    config = json.loads((model_path / "config.json").read_text())
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(size, int):
        raise QuickstartError(f"{model_path / 'config.json'} names no vocab_size")
    return size


def _print_kept(server: ServerProcess, console: Console) -> None:
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    lines = [
        "the server stays up; ask it something with",
        f"  curl {server.base_url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'",
        f"and stop it with  kill {server.pid}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_results(plan: Plan, record: Record, console: Console) -> None:
    console.print()
    console.print(report.table(record))
    peak_gib = max(run.peak_memory_bytes for run in record.runs) / 2**30
    lines = [
        *report.legend(record),
        f"peak memory of a server: {peak_gib:.1f} GiB",
        f"record: {plan.out / 'record.json'}   picture: {plan.out / 'tokens.png'}",
        report.last_line(record),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
