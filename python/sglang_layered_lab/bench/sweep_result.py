"""A finished or begun sweep, read from its folder: arms, points, records, and metrics by round."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.intervals import Interval, t_interval
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.scalars import SCALARS

MANIFEST = "sweep.json"
FORMAT = 1


@dataclass(frozen=True)
class CellResult:
    """One arm at one point; `record_path` is the file its raw data are in."""

    arm: str
    mode: str
    label: str
    point: Mapping[str, Any]
    record_path: Path

    @cached_property
    def record(self) -> BenchRecord:
        """The record, read once."""
        return BenchRecord.read(self.record_path)

    @cached_property
    def _seen(self) -> dict[str, list[float | None]]:
        return {}

    def values(self, name: str) -> list[float | None]:
        """A scalar of `scalars.SCALARS`, one value a round; None where it does not exist."""
        if name not in self._seen:
            limits = self.record.limits
            self._seen[name] = [SCALARS[name].of(each, limits) for each in self.record.repetitions]
        return self._seen[name]

    def known(self, name: str) -> list[float]:
        """The values that exist."""
        return [value for value in self.values(name) if value is not None]

    def mean(self, name: str) -> float | None:
        """Mean over rounds; None when no round has a value."""
        values = self.known(name)
        return sum(values) / len(values) if values else None

    def interval(self, name: str) -> Interval | None:
        """Interval of the mean over rounds, within what it can be; None with fewer than two rounds."""
        values = self.known(name)
        most = 1.0 if SCALARS[name].unit == "share" else math.inf
        return t_interval(values, least=0.0, most=most) if len(values) > 1 else None


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder. `cells` are those that have a record."""

    name: str
    title: str
    grid: Mapping[str, tuple[Any, ...]]
    cells: tuple[CellResult, ...]
    num_missing: int  # cells without a record

    @classmethod
    def read(cls, folder: Path) -> SweepResult:
        """Read a folder that `bench sweep` wrote.

        Raises:
            BenchError: it holds no sweep, or nothing of it was run.
        """
        path = folder / MANIFEST
        try:
            document = json.loads(path.read_text())
            if document["format"] != FORMAT:
                raise BenchError(f"{path}: format {document['format']}, not {FORMAT}; run the sweep again")
            arms = {arm["name"]: arm for arm in document["arms"]}
            cells = [
                CellResult(
                    arm=cell["arm"],
                    mode=arms[cell["arm"]]["mode"],
                    label=arms[cell["arm"]]["label"] or cell["arm"],
                    point=cell["point"],
                    record_path=folder / cell["record"],
                )
                for cell in document["cells"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, BenchError):
                raise
            raise BenchError(f"{path}: no sweep ({error!r}); give a folder of bench sweep") from error
        done = tuple(cell for cell in cells if cell.record_path.exists())
        if not done:
            raise BenchError(f"{folder}: no cell of the sweep was run; run bench sweep")
        settings, grid = document["sweep"], {key: tuple(each) for key, each in document["grid"].items()}
        title = settings["title"] or settings["name"]
        return cls(settings["name"], title, grid, done, len(cells) - len(done))

    def at(self, point: Mapping[str, Any]) -> list[CellResult]:
        """Cells whose point has these values, in the order of the arms."""
        return [cell for cell in self.cells if all(cell.point.get(key) == point[key] for key in point)]

    def of_arm(self, arm: str) -> list[CellResult]:
        """Cells of one arm, in the order of the points."""
        return [cell for cell in self.cells if cell.arm == arm]

    @property
    def arms(self) -> list[str]:
        """Names of the arms that have a record, in the sweep's order."""
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def points(self) -> list[dict[str, Any]]:
        """Points that have a record, in the grid's order."""
        found: list[dict[str, Any]] = []
        for cell in self.cells:
            if dict(cell.point) not in found:
                found.append(dict(cell.point))
        return found
