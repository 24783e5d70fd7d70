"""Figures in the documents are those of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
RECORD = REPO / "results" / "quickstart" / "2026-11-21-2cores-overlap.json"


def test_quickstart_table_of_the_readme_is_the_record() -> None:
    runs = {run["mode"]: run["metrics"] for run in json.loads(RECORD.read_text())["runs"]}
    rows = re.findall(
        r"^\| (whole|mixed|layered) \| (.+?) \|$", (REPO / "README.md").read_text(), re.MULTILINE
    )
    assert [mode for mode, _ in rows] == ["whole", "mixed", "layered"]
    for mode, cells in rows:
        metrics = {name: values["median"] for name, values in runs[mode].items()}
        shown = [
            f"{metrics['ttft_s']:.2f}",
            f"{metrics['worst_gap_s'] * 1000:.0f}",
            f"{metrics['tokens_per_s']:.1f}",
        ]
        assert cells.split(" | ") == shown


def test_architecture_names_every_module() -> None:
    text = (REPO / "docs" / "architecture.md").read_text()
    package = REPO / "python" / "sglang_layered"
    modules = [path.relative_to(package) for path in package.glob("*.py")]
    modules += [
        path.relative_to(package)
        for folder in ("core", "scheduler", "runner")
        for path in (package / folder).glob("*.py")
    ]
    missing = [
        str(path)
        for path in modules
        if path.name not in ("__init__.py", "__main__.py") and str(path) not in text
    ]
    assert not missing
