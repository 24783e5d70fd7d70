"""`bench run`: a server, started or attached to; the spec's load, repetition by repetition; the record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sglang_layered.patching.manifest import default_root
from sglang_layered.writable import check_writable
from sglang_layered_lab.bench import snapshots
from sglang_layered_lab.bench.arrivals import arrival_times, measuring_window, read_timestamps
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_background import DECODING
from sglang_layered_lab.bench.client_data import ClientResult, PlannedRequest, Progress
from sglang_layered_lab.bench.lengths import LengthSource, load_lengths
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.ready import check_model
from sglang_layered_lab.bench.record import BenchRecord, Repetition, to_go_on
from sglang_layered_lab.bench.server_state import check_answers, flush_cache, put_in_force
from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec
from sglang_layered_lab.bench.spec_errors import SpecError, gathered, raise_all
from sglang_layered_lab.bench.workload import Room, Workload
from sglang_layered_lab.bench.workload_text import Tokenizer
from sglang_layered_lab.models.make import make_from_recipe
from sglang_layered_lab.models.router_targets import DEFAULT_TARGETS, read_targets
from sglang_layered_lab.models.router_topics import topics_of
from sglang_layered_lab.quickstart.record import current_commit, installed_versions, this_machine
from sglang_layered_lab.serving import ServerProcess

MODELS = Path("out") / "models"

Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Server:
    """A server to load: its URL, and of its model what the workload needs."""

    url: str
    vocab_size: int
    tokenizer: Tokenizer | None = None
    topics: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """What of a spec is read once: lengths and, for a replayed trace, its times."""

    spec: BenchSpec
    lengths: LengthSource
    timestamps: tuple[float, ...]

    @classmethod
    def of(cls, spec: BenchSpec) -> Load:
        """Read the spec's files.

        Raises:
            SpecError: a file is bad, or the load cannot be planned.
        """
        errors: list[SpecError] = []
        with gathered(errors):
            stamps = read_timestamps(spec.load.trace, spec.folder) if spec.load.trace else ()
        with gathered(errors):
            lengths = load_lengths(spec.workload.lengths, spec.folder)
        with gathered(errors):
            check_model(spec)
        raise_all(errors)
        return cls(spec, lengths, tuple(stamps))

    def planned(self, repetition: int, server: Server) -> list[PlannedRequest]:
        """The requests of one repetition, in the order in which they are due."""
        spec, workload = self.spec, self._workload(repetition, server)
        due_s: Sequence[float] = arrival_times(
            spec.load, spec.run.seed, repetition=repetition, timestamps=self.timestamps
        )
        if spec.load.is_closed:  # one start a client; the others follow an end
            due_s = [*due_s, *[max(due_s)] * ((spec.load.num_requests or 0) - len(due_s))]
        else:
            measuring_window(spec.load, due_s)  # one that holds nothing is told before the load, not after it
        planned = []
        room = Room(spec)
        for index, time_s in enumerate(due_s):
            content = workload.request(index)
            room.take(content.prompt_tokens)
            name = f"{spec.run.name}-{repetition}-{index}"
            planned.append(PlannedRequest(name, time_s, content.prompt, content.output_tokens))
        return planned

    def background(self, repetition: int, server: Server) -> list[PlannedRequest]:
        """The streams that decode beside one repetition's requests."""
        asked = self.spec.load.background
        if asked is None:
            return []
        workload, name = self._workload(repetition, server), f"{self.spec.run.name}-{repetition}-beside"
        return [
            PlannedRequest(
                f"{name}-{index}", 0.0, workload.background(index, asked.prompt_tokens), asked.output_tokens
            )
            for index in range(asked.num_streams)
        ]

    def _workload(self, repetition: int, server: Server) -> Workload:
        return Workload.of(
            self.spec,
            self.lengths,
            repetition=repetition,
            vocab_size=server.vocab_size,
            tokenizer=server.tokenizer,
            topics=server.topics,
        )


def made_with() -> dict[str, Any]:
    """Versions, commit, patch set and machine of a run."""
    manifests = sorted(default_root().glob("*/manifest.json"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()
    return {
        "versions": installed_versions("aiohttp", "numpy", "scipy"),
        "commit": current_commit(),
        "patches_sha256": digest,
        "machine": this_machine(),
    }


@contextmanager
def serving(spec: BenchSpec, log_path: Path) -> Iterator[Server]:
    """The spec's server, started and ended here, or the running one that it names.

    Raises:
        BenchError: a running server does not answer.
        QuickstartError: the server does not start; it has the end of the log.
    """
    if spec.server.url is not None:
        yield attached(spec, spec.server.url)
        return
    model = model_folder(spec)
    with process_of(spec, model, log_path) as process:
        yield started(spec, model, process.base_url)


def attached(spec: BenchSpec, url: str) -> Server:
    """A running server.

    Raises:
        BenchError: it does not answer.
    """
    assert spec.workload.vocab is not None  # the spec sees to it
    check_answers(url.rstrip("/"))
    return Server(url.rstrip("/"), spec.workload.vocab[1])


def process_of(spec: BenchSpec, model: Path, log_path: Path) -> ServerProcess:
    """The spec's server with the model in a folder, not started yet."""
    return ServerProcess(
        model,
        spec.server.flags,
        log_path=log_path,
        env=spec.server.env,
        ready_timeout_s=spec.server.ready_timeout_s,
    )


def started(spec: BenchSpec, model: Path, url: str) -> Server:
    """What the load needs to know of a server that was started with the model in a folder."""
    vocab_size = int(json.loads((model / "config.json").read_text())["vocab_size"])
    tokenizer = tokenizer_of(model) if spec.workload.inputs == "text" else None
    return Server(url, vocab_size, tokenizer, topics_of(model) or ())


def model_folder(spec: BenchSpec) -> Path:
    """The folder of the spec's model, made here when it is one with random weights.

    Raises:
        SpecError: a named folder holds no model.
    """
    model = spec.server.model
    if isinstance(model, MakeModelSpec):
        recipe = model.recipe()
        digest = hashlib.sha256(json.dumps(recipe.as_dict(), sort_keys=True).encode()).hexdigest()[:12]
        folder = MODELS / f"{model.arch}-{model.preset}-{digest}"
        make_from_recipe(recipe, folder)
        return (calibrated_folder(folder) if model.routers == "paper" else folder).resolve()
    check_model(spec)
    return Path(str(model))


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


def tokenizer_of(model: Path) -> Tokenizer:
    """The tokenizer in a model's folder."""
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer


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
    return Repetition(
        index,
        result.traces,
        Window(*measuring_window(spec.load, _times(spec, planned, result))),
        result.report.to_json(),
        result.times.to_json(),
        asdict(usage),
        result.background,
    )


def run(spec: BenchSpec, out: Path, *, restart: bool = False, tell: Tell | None = None) -> BenchRecord:
    """Run what is missing of a spec's repetitions; the record at `out` grows with each of them.

    Raises:
        BenchError: the spec, the server or `out` is bad; `out` is tried before anything is sent.
    """
    load = Load.of(spec)
    check_writable(out)
    if restart:
        out.unlink(missing_ok=True)
    record = to_go_on(out, spec, made_with())
    done = len(record.repetitions)
    if done == spec.run.repetitions:
        return record
    with serving(spec, out.with_suffix(".log")) as server:
        for index in range(done, spec.run.repetitions):
            record = record.with_repetition(run_repetition(load, server, index, tell))
            record.write(out)
    return record


def _times(spec: BenchSpec, planned: Sequence[PlannedRequest], result: ClientResult) -> list[float]:
    """Times that the window is laid over: due times, of a closed load the times of sending."""
    if spec.load.is_closed:
        return [trace.sent_s for trace in result.traces]
    return [request.due_s for request in planned]
