"""The spec of a benchmark run: one TOML file, checked as a whole before anything starts.

`spec_server`, `spec_load` and `spec_workload` hold the larger sections; `arrivals` and `workload` draw from
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.spec_errors import SpecError, bad_file_name
from sglang_layered_lab.bench.spec_keys import Checked, Key, as_seed, count_of, in_seconds, plain
from sglang_layered_lab.bench.spec_lines import line_of, line_of_bad_statement, parse_toml
from sglang_layered_lab.bench.spec_load import LoadSpec
from sglang_layered_lab.bench.spec_server import MakeModelSpec, ServerSpec
from sglang_layered_lab.bench.spec_values import build
from sglang_layered_lab.bench.spec_workload import WorkloadSpec


@dataclass(frozen=True, slots=True)
class SloSpec(Checked):
    """Limits that requests are counted against; docs/metrics.md says when a request meets them."""

    ttft_ms: Annotated[float | None, Key("milliseconds", "of the time to first token", above=0, most=1e9)] = (
        None
    )
    tbt_ms: Annotated[float | None, Key("milliseconds", "of every gap between tokens", above=0, most=1e9)] = (
        None
    )


@dataclass(frozen=True, slots=True)
class RunSpec(Checked):
    """The run as a whole."""

    name: Annotated[str, plain("names the record")]
    repetitions: Annotated[
        int, count_of("repetitions", "passes over the load, with other prompts in each", most=10_000)
    ] = 1
    seed: Annotated[int, as_seed("of arrivals, and of the workload where it has none")] = 0
    timeout_s: Annotated[
        float, in_seconds("a repetition that has not ended this long after its zero is cut off")
    ] = 600.0

    def problems(self) -> Iterator[SpecError]:
        """Give a name that cannot be a file's."""
        yield from bad_file_name("name", self.name)


@dataclass(frozen=True, slots=True)
class BenchSpec(Checked):
    """One benchmark run. `folder` is where relative files of the spec start; it is no part of the record."""

    run: RunSpec
    server: ServerSpec
    load: LoadSpec
    workload: WorkloadSpec
    slo: SloSpec = SloSpec()
    folder: Path = field(default=Path("."), compare=False, metadata={"in_file": False})

    def problems(self) -> Iterator[SpecError]:
        """Give fields of different sections that do not go together."""
        for name in ("duration_s", "warmup_s"):
            limit_s = getattr(self.load, name)
            if limit_s is not None and limit_s >= self.run.timeout_s:
                yield SpecError(
                    ("run", "timeout_s"),
                    f"{self.run.timeout_s:g} s end the run before load.{name} = {limit_s:g}; give more",
                )
        if self.server.url is not None:
            yield from self._attached()
        model = self.server.model
        if self.workload.topics and isinstance(model, MakeModelSpec) and model.routers != "paper":
            yield SpecError(
                ("workload", "topics"), "the model has none; set server.model.routers = 'paper', or remove it"
            )

    def _attached(self) -> Iterator[SpecError]:
        """What a url does not tell of its server's model."""
        if self.workload.vocab is None and not self.workload.topics:
            yield SpecError(
                ("workload", "vocab"),
                "is missing; a server at a url does not say how many token ids its model has: give"
                " [first id, id after the last]",
            )
        if self.workload.inputs == "text":
            yield SpecError(
                ("workload", "inputs"),
                "'text' needs the model's tokenizer, which a url does not give; use 'ids'",
            )
        if self.workload.topics:
            yield SpecError(("workload", "topics"), "a url does not tell them; remove it and give vocab")

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
        BenchError: `FILE:LINE: KEY: what is wrong; remedy`, a line for each thing that is wrong.
    """
    with located(path):
        return spec_from(parse_toml(text_of(path)), path.parent)


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Add file and line to every error of a SpecError: for what reads the spec at `path` or draws from it."""
    try:
        yield
    except SpecError as error:
        text = text_of(path)
        lines = [
            line_of(text, each.keys) if each.keys else line_of_bad_statement(text) for each in error.errors
        ]
        found = sorted(zip(lines, map(str, error.errors), strict=True), key=lambda each: each[0])
        raise BenchError("\n".join(f"{path}:{line}: {each}" for line, each in found)) from error


def text_of(path: Path) -> str:
    """Text of a spec's file.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark
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
