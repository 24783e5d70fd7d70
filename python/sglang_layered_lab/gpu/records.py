"""One JSON file a stage: what ran, where, and every row with its raw times. Written after each row."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sglang_layered.errors import GpuHostError

STAGES = ("smoke", "correct", "kernels", "step", "serve", "profile")
Status = Literal["partial", "done", "failed"]
Row = dict[str, Any]  # always has "key", unique in its record


@dataclass(slots=True)
class StageRecord:
    """Rows of one stage. `partial` means: run the stage again, it goes on where it stopped."""

    stage: str
    profile: str
    status: Status = "partial"
    rows: list[Row] = field(default_factory=list)
    problem: str = ""
    elapsed_s: float = 0.0  # of all its runs together
    environment: dict[str, Any] = field(default_factory=dict)  # versions, machine, commit
    path: Path | None = None  # where it is written; None for one that is only read

    @property
    def is_done(self) -> bool:
        """Nothing is left to do."""
        return self.status == "done"

    def has(self, key: str) -> bool:
        """True when this row is there."""
        return any(row["key"] == key for row in self.rows)

    def row(self, key: str) -> Row:
        """The row of that key."""
        return next(row for row in self.rows if row["key"] == key)

    def add(self, row: Row) -> None:
        """Add a row, or replace the one of the same key, and write the file."""
        self.rows = [old for old in self.rows if old["key"] != row["key"]] + [row]
        self.write()

    def write(self) -> None:
        """Write the file anew, whole or not at all."""
        if self.path is None:
            raise GpuHostError(f"the record of stage {self.stage} has no place to be written to")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {name: value for name, value in asdict(self).items() if name != "path"}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=None, separators=(",", ":")) + "\n")
        os.replace(partial, self.path)

    @classmethod
    def read(cls, path: Path) -> StageRecord:
        """Read what `write` wrote."""
        try:
            return cls(**json.loads(path.read_text()), path=path)
        except (ValueError, TypeError) as error:
            raise GpuHostError(f"{path} is no record of a stage ({error}); remove it") from error


def open_record(folder: Path, stage: str, profile: str, *, again: bool) -> StageRecord:
    """The record in `folder` to go on with, or a new one when there is none or `again` is asked for."""
    path = folder / f"{stage}.json"
    if again or not path.exists():
        return StageRecord(stage, profile, path=path)
    record = StageRecord.read(path)
    if record.profile != profile:
        raise GpuHostError(f"{path} is of --profile {record.profile}; give another --out, or --again")
    return record


def read_records(folder: Path) -> list[StageRecord]:
    """Every record in `folder` and below, in the order of the stages, then of the paths."""
    found = [StageRecord.read(path) for path in sorted(folder.rglob("*.json")) if path.stem in STAGES]
    return sorted(found, key=lambda record: STAGES.index(record.stage))
