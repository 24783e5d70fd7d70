"""The spec of a simulation: one TOML file with arms and a grid, as of `bench sweep`. Runs nothing."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Strict
from pydantic.dataclasses import dataclass

from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec import SloSpec
from sglang_layered_lab.bench.spec_errors import Keys, SpecError, gathered, located, raise_all, read_toml
from sglang_layered_lab.bench.spec_load import LengthsSpec, LoadSpec
from sglang_layered_lab.bench.sweep_spec import put
from sglang_layered_lab.cost.coverage import COVERAGES
from sglang_layered_lab.cost.roofline import DEVICES

RouterName = Literal["round-robin", "least-loaded", "two-choices", "staggered"]


@dataclass(frozen=True)
class SimulationSettings(of.Section):
    """The section [simulation]."""

    name: Annotated[of.FileName, "names the record"]
    title: Annotated[str, "of the table; absent: the name"] = ""
    seed: Annotated[of.Seed, "of arrivals, lengths and classes; every arm gets the same requests"] = 0
    rounds: Annotated[of.Few, "so many times, each with other requests"] = 1


@dataclass(frozen=True)
class StepsSpec(of.Section):
    """How long steps take: as in a recorded `trace`, or at least, by a `device`'s rates."""

    trace: Annotated[str | None, "of --layered-listeners jsonl=; relative to the spec's folder"] = None
    device: Annotated[str | None, "bounds by its rates, without a trace"] = None
    model: Annotated[str, "with a device: a named model, or the path of a config.json"] = "qwen3-30b-a3b"
    coverage: Annotated[str, "with a device: experts that rows activate, uniform or paper"] = "paper"
    host_ms: Annotated[of.Number, of.Unit("milliseconds"), "with a device: between two steps"] = 0.0

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give what names no step times."""
        if (self.trace is None) == (self.device is None):
            yield "trace", "give either trace or device"
        if self.device is not None and self.device not in DEVICES:
            yield "device", f"{self.device!r} is unknown; give one of {', '.join(DEVICES)}"
        if self.coverage not in COVERAGES:
            yield "coverage", f"{self.coverage!r} is unknown; give one of {', '.join(COVERAGES)}"


@dataclass(frozen=True)
class ReplicaSpec(of.Section):
    """Settings of every replica's server, as of its flags."""

    policy: Annotated[str, "--layered-policy"] = "token-target"
    num_groups: Annotated[of.Count | None, "--layered-num-groups"] = None
    group_tokens: Annotated[of.Tokens, "--layered-group-tokens"] = 512
    cohort_tokens: Annotated[of.Tokens, "--chunked-prefill-size"] = 8192
    max_running: Annotated[of.Count, "--max-running-requests"] = 256
    max_parked: Annotated[of.CountOr0, "--layered-max-parked"] = 0
    short_tokens: Annotated[of.Tokens | None, "--layered-short-tokens; absent: group_tokens"] = None
    keeps_tbt: Annotated[bool, Strict(), "a policy that keeps a limit is told slo.tbt_ms"] = True


@dataclass(frozen=True)
class ClusterSpec(of.Section):
    """How many replicas, and who sends requests to them."""

    replicas: Annotated[of.Open, "how many"] = 1
    router: Annotated[RouterName, "how requests are dealt out"] = "round-robin"


@dataclass(frozen=True)
class ClassSpec(of.Section):
    """A part of the requests with limits, and if wanted lengths, of its own."""

    name: Annotated[str, "in the table"]
    share: Annotated[of.Part, "of the requests; those of all classes together are 1"]
    slo: Annotated[SloSpec, "its limits; absent: those of [slo]"] = SloSpec()
    priority: Annotated[int, Strict(), "SGLang's"] = 0
    lengths: Annotated[LengthsSpec | None, "absent: workload.lengths"] = None


@dataclass(frozen=True)
class RequestsSpec(of.Section):
    """The section [workload] of a simulation."""

    lengths: Annotated[LengthsSpec, "of prompts and outputs"]


@dataclass(frozen=True)
class CellSpec(of.Section):
    """One simulated run."""

    steps: StepsSpec
    load: LoadSpec
    workload: RequestsSpec
    replica: ReplicaSpec = ReplicaSpec()
    cluster: ClusterSpec = ClusterSpec()
    slo: SloSpec = SloSpec()
    classes: tuple[ClassSpec, ...] = ()

    def problems(self) -> Iterator[tuple[Keys, str]]:
        """Give loads that are not simulated, and classes that are not all requests."""
        if self.load.is_closed:
            yield "load.arrivals", "a simulation has no closed load; give poisson, gamma, constant or trace"
        if self.load.background is not None:
            yield "load.background", "is not simulated; remove it"
        if self.classes and abs(sum(each.share for each in self.classes) - 1) > 1e-6:
            yield (
                "classes",
                f"their shares are {sum(each.share for each in self.classes):g} together; make it 1",
            )


@dataclass(frozen=True)
class SimulatedArm(of.Section):
    """One way to serve."""

    name: Annotated[of.FileName, "in the table"]
    changes: Annotated[dict[str, Any], "values of dotted keys"] = field(default_factory=dict)


@dataclass(frozen=True)
class _OwnSections(of.Section):
    """What a file has beside a cell's sections."""

    simulation: SimulationSettings
    arms: tuple[SimulatedArm, ...] = (SimulatedArm("simulated"),)
    grid: Annotated[dict[str, of.Values], "of dotted keys"] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm at a point of the grid."""

    arm: str
    point: dict[str, Any]
    spec: CellSpec


@dataclasses.dataclass(frozen=True)
class Simulation:
    """All that a file asks for."""

    settings: SimulationSettings
    cells: tuple[Cell, ...]
    values: Mapping[str, Any]  # as they were read
    folder: Path = Path(".")


def read_simulation(path: Path) -> Simulation:
    """Read a file.

    Raises:
        BenchError: `FILE:LINE: KEY: what is wrong; remedy`, a line for each thing that is wrong.
    """
    with located(path):
        return simulation_from(read_toml(path), path.parent)


def simulation_from(values: Mapping[str, Any], folder: Path = Path(".")) -> Simulation:
    """Make a simulation of plain values; relative files start at `folder`.

    Raises:
        SpecError: it names the key and the remedy.
    """
    names = _OwnSections.names()
    own: _OwnSections = of.checked(_OwnSections, {key: values[key] for key in names if key in values})
    base = {key: each for key, each in values.items() if key not in names}
    cells: list[Cell] = []
    errors: list[SpecError] = []
    for point in [dict(zip(own.grid, each, strict=True)) for each in product(*own.grid.values())]:
        for index, arm in enumerate(own.arms):
            with gathered(errors):
                changed = copy.deepcopy(base)
                for where, changes in ((("grid",), point), (("arms", index, "changes"), arm.changes)):
                    for key, value in changes.items():
                        put(changed, key, value, where)
                cells.append(Cell(arm.name, point, of.checked(CellSpec, changed)))
    raise_all(errors)
    return Simulation(own.simulation, tuple(cells), values, folder)
