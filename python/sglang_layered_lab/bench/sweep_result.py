"""A finished or begun sweep, read from its folder: arms, points, records, and metrics by round."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.intervals import Interval, share_interval, t_interval
from sglang_layered_lab.bench.metrics import RunMetrics
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.scalars import SCALARS, scalars_of

LIMITS = {"attainment": "both", "attainment_ttft": "ttft", "attainment_tbt": "tbt"}
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
    def _metrics(self) -> list[RunMetrics]:
        return [each.metrics(self.record.limits) for each in self.record.repetitions]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """All scalars of `scalars.SCALARS`, a row a round under its number; NaN where one does not exist."""
        pairs = zip(self.record.repetitions, self._metrics, strict=True)
        found = {each.index: scalars_of(each, seen) for each, seen in pairs}
        return pd.DataFrame.from_dict(found, orient="index", columns=list(SCALARS), dtype=float)

    @cached_property
    def due(self) -> pd.DataFrame:
        """`metrics.requests_of` of the requests of all rounds that were due in their windows."""
        return pd.concat([seen.due for seen in self._metrics], ignore_index=True)

    @property
    def has_background(self) -> bool:
        """Did streams decode beside its requests?"""
        return any(each.background for each in self.record.repetitions)

    def known(self, name: str) -> list[float]:
        """A scalar's values that exist, by rounds."""
        values: list[float] = self.rounds[name].dropna().tolist()
        return values

    def mean(self, name: str) -> float | None:
        """Mean over rounds; None when no round has a value."""
        values = self.known(name)
        return sum(values) / len(values) if values else None

    def counts_within(self, name: str) -> tuple[int, int]:
        """Requests of all rounds that met the limit of a scalar of `LIMITS`, and that were due.

        (0, 0) where the limit is not set.
        """
        limit = LIMITS[name]
        return (int(self.due[limit].sum()), len(self.due)) if limit in self.due else (0, 0)

    def interval(self, name: str) -> Interval | None:
        """Interval of the mean over rounds, within what it can be; None with fewer than two rounds.

        That of a share of requests is Wilson's, of the requests of all rounds together.
        """
        if name in LIMITS:
            num_met, num_due = self.counts_within(name)
            return share_interval(num_met, num_due) if num_due else None
        values = self.known(name)
        most = 1.0 if SCALARS[name].unit == "share" else math.inf
        return t_interval(values, least=0.0, most=most) if len(values) > 1 else None


def mode_of(flags: Sequence[str]) -> str:
    """What pictures call a server with these flags, where no sweep says it."""
    words = " ".join(flags).replace("=", " ").split()
    if "--prefill-mode" in words[:-1]:
        return words[words.index("--prefill-mode") + 1]
    return "mixed" if "--enable-mixed-chunk" in words else "default"


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder. `cells` are those that have a record."""

    name: str
    title: str
    grid: Mapping[str, tuple[Any, ...]]
    cells: tuple[CellResult, ...]
    num_missing: int  # cells without a record
    has_manifest: bool = True  # it is a sweep's folder, and not records put beside each other

    @classmethod
    def read(cls, folder: Path) -> "SweepResult":
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

    @classmethod
    def of_records(cls, paths: Sequence[Path]) -> "SweepResult":
        """Records of `bench run` as the arms of a sweep, named by their files; the first one is the baseline.

        Raises:
            BenchError: a file is no record, or two have one name.
        """
        names = [path.name.removesuffix(".gz").removesuffix(".json") for path in paths]
        if len(set(names)) < len(names):
            raise BenchError(f"two records have one name ({', '.join(names)}); rename one")
        cells = []
        for name, path in zip(names, paths, strict=True):
            spec = BenchRecord.read(path).spec
            cells.append(CellResult(name, mode_of(spec["server"].get("flags", ())), name, {}, path))
        title = " and ".join(dict.fromkeys(str(cell.record.spec["run"]["name"]) for cell in cells))
        return cls("records", title, {}, tuple(cells), 0, has_manifest=False)

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
        points = [dict(cell.point) for cell in self.cells]
        return [point for index, point in enumerate(points) if point not in points[:index]]
