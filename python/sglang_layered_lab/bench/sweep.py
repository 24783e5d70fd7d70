"""`bench sweep`: every cell in every round, arms interleaved, so that what drifts in the machine cancels.

A folder holds the manifest and a record a cell; a second call runs only what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered.writable import check_writable
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.record import BenchRecord, to_go_on
from sglang_layered_lab.bench.run import Load, Server, made_with, run_repetition
from sglang_layered_lab.bench.server_pool import ServerPool, key_of
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.spec_errors import SpecError, gathered, raise_all
from sglang_layered_lab.bench.spec_seeds import Stream, generator
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.sweep_spec import Cell, SweepSpec
from sglang_layered_lab.bench.trace import RequestTrace

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
    once, arm after arm in an order drawn for the round, so that a round starts each of them once.
    """
    num_arms = len(spec.arms)
    points = range(0, len(spec.cells), num_arms)
    if len({key_of(cell.spec) for cell in spec.cells}) > spec.settings.max_servers:
        arms = _drawn(spec, round_index, 0)
        return [spec.cells[start + arm] for arm in arms for start in points]
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
    spec: SweepSpec,
    folder: Path,
    *,
    pool: ServerPool | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> SweepResult:
    """Run what is missing of a sweep; `pool` may bring servers that are alive already.

    A folder of the same sweep with fewer rounds gets those that are missing.

    Raises:
        BenchError: the folder holds another sweep or more rounds, or a run fails.
    """
    check_cells(spec)
    check_writable(folder / MANIFEST)
    if restart:
        _clear(folder)
    _begin(spec, folder)
    if pool is None:
        with pool_for([spec], folder) as own:
            return run_sweep(spec, folder, pool=own, tell=tell)
    with_versions = made_with()
    records = {
        cell.file_name: to_go_on(folder / cell.file_name, cell.spec, with_versions) for cell in spec.cells
    }
    for turn in turns(spec, records):
        if tell is not None:
            tell(turn)
        server = pool.turn_of(turn.cell.spec)
        repetition = run_repetition(Load.of(turn.cell.spec), server, turn.round_index)
        _check(turn, repetition.traces)
        name = turn.cell.file_name
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
        at_once = [
            PlannedRequest(each.request_id, 0.0, each.prompt, each.max_output_tokens) for each in planned
        ]
        if at_once:
            run_client(server.url, at_once, timeout_s=WARMUP_TIMEOUT_S, num_clients=1)

    return ServerPool(max(spec.settings.max_servers for spec in specs), log_folder, warm_up)


def _begin(spec: SweepSpec, folder: Path) -> None:
    path = folder / MANIFEST
    document = json.loads(json.dumps({"format": FORMAT} | spec.to_json()))
    if path.exists():
        _check_same(folder, json.loads(path.read_text()), document)
    folder.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(new, path)


def _check_same(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """The sweep there is this one, with as many rounds or fewer."""
    has, wanted = there["sweep"]["rounds"], here["sweep"]["rounds"]
    if {**there, "sweep": {**there["sweep"], "rounds": wanted}} != here:
        raise BenchError(f"{folder} holds another sweep; give another --out, or --restart to replace it")
    if has > wanted:
        raise BenchError(
            f"{folder} is a sweep of {has} rounds; give rounds = {has} or more, another --out, or --restart"
        )


def _clear(folder: Path) -> None:
    """Remove a sweep's manifest and records, nothing else."""
    if (folder / MANIFEST).exists():
        for cell in json.loads((folder / MANIFEST).read_text())["cells"]:
            (folder / Path(cell["record"]).name).unlink(missing_ok=True)
        (folder / MANIFEST).unlink()


def _check(turn: Turn, traces: Sequence[RequestTrace]) -> None:
    if all(trace.error is not None for trace in traces):
        where = f"{turn.cell.spec.run.name}: no request of round {turn.round_index} ended well"
        raise BenchError(f"{where}: {traces[0].error}")
