"""The spec of a benchmark run: one TOML file, checked as a whole before anything starts.

`spec_server`, `spec_load` and `spec_workload` hold the larger sections; `arrivals` and `workload` draw from
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sglang_layered.bench.spec_errors import SpecError, check_above, check_file_name
from sglang_layered.bench.spec_lines import line_of, line_of_bad_statement, parse_toml
from sglang_layered.bench.spec_load import LoadSpec
from sglang_layered.bench.spec_server import ServerSpec
from sglang_layered.bench.spec_values import build
from sglang_layered.bench.spec_workload import WorkloadSpec
from sglang_layered.errors import BenchError


@dataclass(frozen=True, slots=True)
class SloSpec:
    """Limits that requests are counted against; docs/metrics.md says when a request meets them."""

    ttft_ms: float | None = None
    tbt_ms: float | None = None

    def __post_init__(self) -> None:
        check_above("ttft_ms", self.ttft_ms, "milliseconds")
        check_above("tbt_ms", self.tbt_ms, "milliseconds")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The run as a whole."""

    name: str
    repetitions: int = 1
    seed: int = 0
    timeout_s: float = 600.0  # a repetition that has not ended this long after its zero is cut off

    def __post_init__(self) -> None:
        check_file_name("name", self.name)
        check_above("repetitions", self.repetitions, "a number of repetitions", least=1)
        check_above("seed", self.seed, "a whole number", least=0)
        check_above("timeout_s", self.timeout_s, "seconds")


@dataclass(frozen=True, slots=True)
class BenchSpec:
    """One benchmark run. `folder` is where relative files of the spec start; it is no part of the record."""

    run: RunSpec
    server: ServerSpec
    load: LoadSpec
    workload: WorkloadSpec
    slo: SloSpec = SloSpec()
    folder: Path = field(default=Path("."), compare=False, metadata={"in_file": False})

    def __post_init__(self) -> None:
        for name in ("duration_s", "warmup_s"):
            limit_s = getattr(self.load, name)
            if limit_s is not None and limit_s >= self.run.timeout_s:
                raise SpecError(
                    ("run", "timeout_s"),
                    f"{self.run.timeout_s:g} s end the run before load.{name} = {limit_s:g}; give more",
                )

    @property
    def workload_seed(self) -> int:
        """Seed of lengths and contents."""
        return self.run.seed if self.workload.seed is None else self.workload.seed

    def to_json(self) -> dict[str, Any]:
        """JSON values of all fields but unset ones; absolute paths lose their folders."""
        values: dict[str, Any] = _public(asdict(self))
        del values["folder"]
        return values


def spec_from(values: Mapping[str, Any], folder: Path = Path(".")) -> BenchSpec:
    """Make a spec of plain values, such as `to_json` gives; `folder` is where its relative files start.

    Raises:
        SpecError: it names the key and the remedy.
    """
    spec = build(BenchSpec, values)
    return BenchSpec(spec.run, spec.server, spec.load, spec.workload, spec.slo, folder)


def read_spec(path: Path) -> BenchSpec:
    """Read a spec file.

    Raises:
        BenchError: one line `FILE:LINE: KEY: what is wrong; remedy`.
    """
    with located(path):
        return spec_from(parse_toml(text_of(path)), path.parent)


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Add file and line to a SpecError: for whatever reads the spec at `path` or draws from it."""
    try:
        yield
    except SpecError as error:
        text = text_of(path)
        line = line_of(text, error.keys) if error.keys else line_of_bad_statement(text)
        raise BenchError(f"{path}:{line}: {error}") from error


def text_of(path: Path) -> str:
    """Text of a spec's file.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BenchError(f"{path}: the spec cannot be read: {reason}; give a TOML file") from error


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    if isinstance(value, str):
        return "=".join(_without_folder(part) for part in value.split("="))
    return value


def _without_folder(text: str) -> str:
    path = PurePosixPath(text)
    return path.name if path.is_absolute() else text
