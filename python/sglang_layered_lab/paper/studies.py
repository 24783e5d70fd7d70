"""Which sweeps a profile has, and how `--fast` makes them small. It reads files and runs nothing."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic.dataclasses import dataclass

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench import spec_keys as of
from sglang_layered_lab.bench.spec_errors import SpecError, located, read_toml
from sglang_layered_lab.bench.sweep_spec import SweepSpec, put, sweep_from

FAST_FILE = "fast.toml"


@dataclass(frozen=True)
class Reduction(of.Section):
    """How a sweep is made small: arms that stay, new values of dotted keys, flags after the others, grid."""

    arms: Annotated[tuple[str, ...], "none: all"] = ()
    changes: Annotated[dict[str, Any], "values of dotted keys"] = field(default_factory=dict)
    flags: Annotated[tuple[str, ...], "of every server; of two equal ones the last counts"] = ()
    grid: Annotated[dict[str, Any], "replaces the whole grid"] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
    """One sweep of a profile."""

    name: str
    path: Path
    spec: SweepSpec


def read_studies(
    folder: Path, *, fast: bool = False, only: tuple[str, ...] = (), more_flags: tuple[str, ...] = ()
) -> tuple[Study, ...]:
    """Read a profile's sweeps, in the order of their file names.

    Args:
        folder: holds one TOML file a sweep, and `fast.toml` with a table a sweep.
        fast: make them small; sweeps that `fast.toml` does not name are left out.
        only: names of the sweeps to keep.
        more_flags: added to the flags of every server that is started.

    Raises:
        BenchError: a file is bad, or a name is unknown.
    """
    paths = sorted(path for path in folder.glob("*.toml") if path.name != FAST_FILE)
    if not paths:
        raise BenchError(f"{folder} holds no sweeps; give a folder of a profile")
    reductions = _read_reductions(folder / FAST_FILE) if fast else None
    studies = []
    for path in paths:
        with located(path):
            values = read_toml(path)
            name = str(values.get("sweep", {}).get("name"))
            if reductions is not None:
                if name not in reductions:
                    continue
                values = reduced(values, reductions[name])
            if more_flags and "url" not in values.get("server", {}):
                values["server"]["flags"] = [*values["server"].get("flags", ()), *more_flags]
            studies.append(Study(name, path, sweep_from(values, path.parent)))
    unknown = {*only, *(reductions or ())} - {study.name for study in studies}
    if unknown:
        names = ", ".join(study.name for study in studies)
        raise BenchError(f"no study {', '.join(sorted(unknown))}; there are {names}")
    return tuple(study for study in studies if not only or study.name in only)


def reduced(values: Mapping[str, Any], reduction: Reduction) -> dict[str, Any]:
    """Plain values of a sweep, made small.

    Raises:
        SpecError: an arm that is to stay is not there, or a key's parent is no table.
    """
    small = copy.deepcopy(dict(values))
    if reduction.arms:
        known = {arm["name"]: arm for arm in small["arms"]}
        missing = [name for name in reduction.arms if name not in known]
        if missing:
            raise SpecError(("arms",), f"{FAST_FILE} keeps {', '.join(missing)}, which the sweep has not")
        small["arms"] = [known[name] for name in reduction.arms]
    for key, value in reduction.changes.items():
        put(small, key, value, ())
    if reduction.flags:
        server = small.setdefault("server", {})
        server["flags"] = [*server.get("flags", ()), *reduction.flags]
    if reduction.grid:
        small["grid"] = reduction.grid
    return small


def _read_reductions(path: Path) -> dict[str, Reduction]:
    with located(path):
        return cast(dict[str, Reduction], of.checked(dict[str, Reduction], read_toml(path)))
