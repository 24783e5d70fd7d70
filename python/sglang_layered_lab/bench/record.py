"""The record of a run: spec, versions, machine, raw times, what the server counted. JSON in and out.

Metrics are not in it: whoever reads a record computes them from the raw times.
"""

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter

from sglang_layered.errors import BenchError
from sglang_layered.metrics.slo import SloLimits
from sglang_layered_lab.bench.metrics import RunMetrics, Window, measure
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.trace import RequestTrace

FORMAT = 1
WindowOfRun = Annotated[  # in JSON [start_s, end_s]
    Window,
    Field(alias="window_s"),
    BeforeValidator(lambda ends: Window(*ends)),
    PlainSerializer(lambda window: [window.start_s, window.end_s]),
]


@dataclass(frozen=True, slots=True)
class Repetition:
    """One pass over the load. `client` and `times` are what the client says of itself, as JSON values.

    `background` are the streams that decoded beside the requests; no metric counts them as requests.
    """

    index: int
    traces: Annotated[tuple[RequestTrace, ...], Field(alias="requests")]
    window: WindowOfRun
    client: Mapping[str, Any]
    times: Mapping[str, Any]
    usage: Mapping[str, Any]
    background: tuple[RequestTrace, ...] = ()

    def metrics(self, limits: SloLimits) -> RunMetrics:
        """Metrics of the requests that were due in the window."""
        return measure(self.traces, self.window, limits)


@dataclass(frozen=True, slots=True)
class BenchRecord:
    """Everything a run leaves behind; `spec` and `made_with` are JSON values."""

    spec: Mapping[str, Any]
    made_with: Mapping[str, Any]  # versions, commit, patches, machine
    repetitions: tuple[Repetition, ...] = ()

    @property
    def limits(self) -> SloLimits:
        """The limits that the spec names."""
        slo = self.spec.get("slo", {})
        ttft, tbt = (None if slo.get(name) is None else slo[name] / 1e3 for name in ("ttft_ms", "tbt_ms"))
        return SloLimits(ttft, tbt)

    def with_repetition(self, repetition: Repetition) -> "BenchRecord":
        """The record with one repetition more."""
        return BenchRecord(self.spec, self.made_with, (*self.repetitions, repetition))

    def to_json(self) -> dict[str, Any]:
        """JSON values; a file's content."""
        values: dict[str, Any] = _RECORD.dump_python(self, mode="json", by_alias=True)
        return {"format": FORMAT} | values

    def write(self, path: Path) -> None:
        """Write it whole, compressed where the name ends in .gz; a reader sees the old one or the new.

        Raises:
            BenchError: it cannot be written; what was there before is kept.
        """
        document = self.to_json()
        new = path.with_name(path.name + ".new")
        data = (json.dumps(document) + "\n").encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
            os.replace(new, path)
        except OSError as error:
            raise BenchError(
                f"{path} cannot be written ({error.strerror}): repetition {len(self.repetitions)} is lost,"
                " those before it are kept; make room and run again"
            ) from error

    @classmethod
    def read(cls, path: Path) -> "BenchRecord":
        """Read a record.

        Raises:
            BenchError: it is none, or of another format.
        """
        try:
            data = path.read_bytes()
            document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
            if document["format"] != FORMAT:
                raise BenchError(f"{path}: format {document['format']}, not {FORMAT}; make the record again")
            return _RECORD.validate_python(document)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BenchError):
                raise
            why = " ".join(repr(error).split())[:200]
            raise BenchError(f"{path}: no record of bench run ({why}); give one") from error


_RECORD = TypeAdapter(BenchRecord)


def to_go_on(path: Path, spec: BenchSpec, made_with: Mapping[str, Any]) -> BenchRecord:
    """The record at `path` to add repetitions to, or a new one where there is none.

    The spec may ask for more repetitions than it did; those that were made stay.

    Raises:
        BenchError: the record there is of another spec, or was made with something else.
    """
    fresh = BenchRecord(spec.to_json(), made_with)
    if not path.exists():
        return fresh
    found = BenchRecord.read(path)
    if len(found.repetitions) <= spec.run.repetitions:
        run = {**found.spec["run"], "repetitions": spec.run.repetitions}
        found = replace(found, spec={**found.spec, "run": run})
    plain = json.loads(json.dumps([fresh.spec, fresh.made_with]))
    for name, there, here in zip(("spec", "made_with"), (found.spec, found.made_with), plain, strict=True):
        if there != here:
            differing = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
            raise BenchError(
                f"{path} holds a run that differs in {name}: {', '.join(differing)}; give another --out, or"
                " --restart to replace it"
            )
    return found
