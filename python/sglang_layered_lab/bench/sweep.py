"""`bench sweep`: every cell in every round, arms interleaved, so that what drifts in the machine cancels.

A folder holds the manifest and a record a cell; a second call runs only what is missing.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sglang_layered.errors import BenchError
from sglang_layered.files import check_output
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.record import BenchRecord, to_go_on
from sglang_layered_lab.bench.run import made_with, run_repetition
from sglang_layered_lab.bench.server_pool import ServerPool, key_of
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import SpecError, gathered, raise_all
from sglang_layered_lab.bench.spec_seeds import Stream, generator
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.sweep_spec import Cell, SweepSpec
from sglang_layered_lab.bench.workload import Server

WARMUP_REPETITION = 1_000_000  # requests of a repetition that no round has
WARMUP_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One cell in one round; `number` of `total` turns of the sweep."""

    cell: Cell
    round_index: int
    number: int
    total: int


Tell = Callable[[Turn], None]


def order(spec: SweepSpec, round_index: int) -> list[Cell]:
    """Cells in the order of their turns.

    Point after point, arms in an order drawn for round and point. Where the servers of all arms do not fit at
    once, server after server and arm after arm in an order drawn for the round, so that a round starts each
    server once.
    """
    num_arms = len(spec.arms)
    points = range(0, len(spec.cells), num_arms)
    if len({key_of(cell.spec) for cell in spec.cells}) > spec.settings.max_servers:
        cells = [spec.cells[start + arm] for arm in _drawn(spec, round_index, 0) for start in points]
        keys = [key_of(cell.spec) for cell in cells]
        servers = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return [cell for _, cell in sorted(zip(keys, cells, strict=True), key=lambda pair: servers[pair[0]])]
    return [
        spec.cells[start + arm]
        for point, start in enumerate(points)
        for arm in _drawn(spec, round_index, point)
    ]


def _drawn(spec: SweepSpec, round_index: int, point: int) -> list[int]:
    """Places of the arms in an order of their own."""
    draws = generator(spec.settings.seed, Stream.ARM_ORDER, round_index, point)
    return [int(index) for index in draws.permutation(len(spec.arms))]


def run_sweep(
    spec: SweepSpec, folder: Path, pool: ServerPool, *, restart: bool = False, tell: Tell | None = None
) -> SweepResult:
    """Run what is missing of a sweep; the pool may bring servers that are alive already.

    A folder of the same sweep with fewer rounds gets those that are missing.

    Raises:
        BenchError: the folder holds another sweep or more rounds, or a run fails.
    """
    check_cells(spec)
    check_output(folder / MANIFEST)
    _begin(spec, folder, restart)
    by_python = {cell.spec.server.python: cell.spec for cell in spec.cells}
    made = {python: made_with(each) for python, each in by_python.items()}
    records = {
        cell.file_name: to_go_on(folder / cell.file_name, cell.spec, made[cell.spec.server.python])
        for cell in spec.cells
    }
    for turn in turns(spec, records):
        if tell is not None:
            tell(turn)
        asked, name = turn.cell.spec, turn.cell.file_name
        repetition = run_repetition(Load.of(asked), pool.turn_of(asked), turn.round_index)
        if all(trace.error is not None for trace in repetition.traces):
            where = f"{asked.run.name}: no request of round {turn.round_index} ended well"
            raise BenchError(f"{where}: {repetition.traces[0].error}")
        records[name] = records[name].with_repetition(repetition)
        records[name].write(folder / name)
    return SweepResult.read(folder)


def check_cells(spec: SweepSpec) -> None:
    """Read what every cell needs, and draw nothing.

    Raises:
        SpecError: everything that is wrong with a file or a model.
    """
    errors: list[SpecError] = []
    for cell in spec.cells:
        with gathered(errors):
            Load.of(cell.spec)
    raise_all(errors)


def turns(spec: SweepSpec, records: dict[str, BenchRecord]) -> Iterator[Turn]:
    """What is still to be run, given how many rounds each record has."""
    total = len(spec.cells) * spec.settings.rounds
    number = 0
    for round_index in range(spec.settings.rounds):
        for cell in order(spec, round_index):
            number += 1
            if len(records[cell.file_name].repetitions) <= round_index:
                yield Turn(cell, round_index, number, total)


def pool_for(specs: Sequence[SweepSpec], log_folder: Path) -> ServerPool:
    """A pool that serves all of the sweeps, with the most servers that one of them allows."""
    warmups = {key_of(cell.spec): spec.settings.warmup_requests for spec in specs for cell in spec.cells}

    def warm_up(spec: BenchSpec, server: Server) -> None:
        planned = Load.of(spec).planned(WARMUP_REPETITION, server)[: warmups[key_of(spec)]]
        at_once = [replace(each, due_s=0.0) for each in planned]
        if at_once:
            run_client(server.url, at_once, timeout_s=WARMUP_TIMEOUT_S, num_clients=1)

    return ServerPool(max(spec.settings.max_servers for spec in specs), log_folder, warm_up)


def _begin(spec: SweepSpec, folder: Path, restart: bool) -> None:
    """Write the manifest; one that is there is of this sweep, with as many rounds or fewer.

    With `restart` that one and its records are removed, and nothing else.
    """
    path = folder / MANIFEST
    here = json.loads(json.dumps({"format": FORMAT} | spec.to_json()))
    there = json.loads(path.read_text()) if path.exists() else here
    if restart:
        for cell in there["cells"]:
            (folder / Path(cell["record"]).name).unlink(missing_ok=True)
        there = here
    has, wanted = there["sweep"]["rounds"], here["sweep"]["rounds"]
    if {**there, "sweep": {**there["sweep"], "rounds": wanted}} != here:
        raise BenchError(f"{folder} holds another sweep; give another --out, or --restart to replace it")
    if has > wanted:
        remedy = f"give rounds = {has} or more, another --out, or --restart"
        raise BenchError(f"{folder} is a sweep of {has} rounds; {remedy}")
    folder.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(here, indent=1) + "\n")
    os.replace(new, path)
