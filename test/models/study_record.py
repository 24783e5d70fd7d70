"""The record of a study: what ran, where, with which versions, and every raw row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine


def write_record(out: Path, spec: dict[str, Any], rows: Sequence[Any]) -> None:
    """Write `spec` and the rows (dataclasses) as JSON."""
    record = spec | {
        "versions": installed_versions(),
        "commit": current_commit(),
        "machine": this_machine(),
        "rows": [asdict(row) for row in rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record) + "\n")
