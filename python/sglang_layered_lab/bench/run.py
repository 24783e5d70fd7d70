"""`bench run`: a server, started or attached to; the spec's load, repetition by repetition; the record."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sglang_layered.files import check_output
from sglang_layered.patching.patch_set import default_root
from sglang_layered_lab.bench import snapshots
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_data import DECODING, Progress, rounded
from sglang_layered_lab.bench.load import Load, vocab_size_of
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import BenchRecord, Repetition, to_go_on
from sglang_layered_lab.bench.server_state import flush_cache, put_in_force
from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.workload import Server
from sglang_layered_lab.models.make import make_from_recipe
from sglang_layered_lab.models.router_targets import DEFAULT_TARGETS, read_targets
from sglang_layered_lab.models.router_topics import topics_of
from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine
from sglang_layered_lab.serving import ServerProcess, measured_attention, measured_flags

# What the rest of the laboratory needs to run a load of its own.
__all__ = ["Load", "Server", "made_with", "model_folder", "run", "run_repetition", "serving"]
MODELS = Path("out") / "models"

Tell = Callable[[Progress], None]


def made_with(spec: BenchSpec | None = None) -> dict[str, Any]:
    """Versions, commit, patch set and machine of a run; versions of the environment that serves.

    Raises:
        SpecError: the spec names an interpreter that does not run.
    """
    manifests = sorted(default_root().glob("*/manifest.json"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()
    python = sys.executable if spec is None else interpreter(spec)
    return {
        "versions": installed_versions("aiohttp", "numpy", "scipy", python=python),
        "commit": current_commit(),
        "patches_sha256": digest,
        "machine": this_machine(),
        "attention": measured_attention(),
    }


@contextmanager
def serving(spec: BenchSpec, log_path: Path) -> Iterator[Server]:
    """The spec's server, started and ended here, or the running one that it names.

    Raises:
        LabError: the server does not start; it has the end of the log.
    """
    if spec.server.url is not None:
        yield attached(spec, spec.server.url)
        return
    model = model_folder(spec)
    with process_of(spec, model, log_path) as process:
        yield started(spec, model, process.base_url)


def attached(spec: BenchSpec, url: str) -> Server:
    """A running server; it is asked for nothing yet."""
    assert spec.workload.vocab is not None  # the spec sees to it
    return Server(url.rstrip("/"), spec.workload.vocab[1])


def process_of(spec: BenchSpec, model: Path, log_path: Path) -> ServerProcess:
    """The spec's server with the model in a folder, not started yet."""
    asked = spec.server
    return ServerProcess(
        model,
        measured_flags(asked.flags),
        log_path=log_path,
        env=asked.env,
        python=interpreter(spec),
        ready_timeout_s=asked.ready_timeout_s,
    )


def interpreter(spec: BenchSpec) -> str:
    """The one that the spec names, or our own.

    Raises:
        SpecError: there is none; it names the key and the remedy.
    """
    named = spec.server.python
    if named is None:
        return sys.executable
    path = Path(os.path.abspath(spec.folder / named))  # a link must stay one: it says which environment
    if not os.access(path, os.X_OK):
        problem = f"{named!r} cannot be run; give the python of an environment, as scripts/setup.sh makes it"
        raise SpecError("server.python", problem)
    return str(path)


def started(spec: BenchSpec, model: Path, url: str) -> Server:
    """What the load needs to know of a server that was started with the model in a folder."""
    tokenizer = None
    if spec.workload.inputs == "text":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
    return Server(url, vocab_size_of(model), tokenizer, topics_of(model) or ())


def model_folder(spec: BenchSpec) -> Path:
    """The folder of the spec's model, made here when it is one with random weights.

    Raises:
        SpecError: a named folder holds no model.
    """
    model = spec.server.model
    if not isinstance(model, MakeModelSpec):
        vocab_size_of(Path(str(model)))
        return Path(str(model))
    recipe = model.recipe()
    digest = hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()[:12]
    folder = MODELS / f"{model.arch}-{model.preset}-{digest}"
    make_from_recipe(recipe, folder)
    return (calibrated_folder(folder) if model.routers == "paper" else folder).resolve()


def calibrated_folder(model: Path) -> Path:
    """The model beside it with routers calibrated to the paper's coverage, made if it is not there.

    A process of its own makes it: the model's memory is free again afterwards.

    Raises:
        ModelRecipeError: its routers cannot be calibrated.
    """
    targets = hashlib.sha256(DEFAULT_TARGETS.read_bytes()).hexdigest()[:8]
    folder = model.with_name(f"{model.name}-calibrated-{targets}")
    if topics_of(folder) is None:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
            own.submit(_calibrate, model, folder).result()
    return folder


def _calibrate(model: Path, folder: Path) -> None:
    from sglang_layered_lab.models.router_calibrate import calibrate
    from sglang_layered_lab.models.router_checkpoint import write_calibrated

    write_calibrated(model, folder, calibrate(model, read_targets(DEFAULT_TARGETS)))


def run_repetition(load: Load, server: Server, index: int, tell: Tell | None = None) -> Repetition:
    """Send one repetition's requests and note everything."""
    spec = load.spec
    planned, background = load.planned(index, server), load.background(index, server)
    put_in_force(server.url, spec.server.settings)
    flush_cache(server.url)
    seen: list[snapshots.Snapshot] = []
    result = run_client(
        server.url,
        planned,
        timeout_s=spec.run.timeout_s,
        num_clients=spec.load.num_clients if spec.load.is_closed else None,
        on_ready=lambda: seen.append(snapshots.take(server.url)),
        on_progress=tell,
        background=background,
        tokens_before=spec.load.background.tokens_before if spec.load.background else DECODING,
    )
    usage = snapshots.between(seen[0], snapshots.take(server.url))
    window_s = load.window_s([trace.sent_s for trace in result.traces], index)
    return Repetition(
        index,
        result.traces,
        Window(*window_s),
        rounded(result.report),
        rounded(result.times),
        asdict(usage),
        result.background,
    )


def run(spec: BenchSpec, out: Path, *, restart: bool = False, tell: Tell | None = None) -> BenchRecord:
    """Run what is missing of a spec's repetitions; the record at `out` grows with each of them.

    Raises:
        BenchError: the spec, the server or `out` is bad; `out` is tried before anything is sent.
    """
    load = Load.of(spec)
    check_output(out)
    if restart:
        out.unlink(missing_ok=True)
    record = to_go_on(out, spec, made_with(spec))
    done = len(record.repetitions)
    if done == spec.run.repetitions:
        return record
    with serving(spec, out.with_suffix(".log")) as server:
        for index in range(done, spec.run.repetitions):
            record = record.with_repetition(run_repetition(load, server, index, tell))
            record.write(out)
    return record
