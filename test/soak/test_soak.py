"""A short soak: every scene and 300 disturbed requests on a layered server at its request limit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from servers import forked
from soak_plan import SoakSpec
from soak_record import run_soak
from soak_scenes import SCENES

pytestmark = pytest.mark.server


def test_scenes_and_300_disturbed_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in forked().items():
        monkeypatch.setenv(name, value)
    done = run_soak(SoakSpec.of(300), tmp_path, Console(quiet=True))
    done.write(tmp_path / "record.json")
    assert done.violations == []
    asked = Counter(outcome.ask.rid.split("-")[0] for outcome in done.played.outcomes)
    assert asked["soak"] == 300
    assert asked["talk"] > 0
    assert all(done.played.operator[f"scene {name}"] == 1 for name in SCENES)
    assert done.played.operator["abort all"] > 0
    assert done.played.operator["client dies"] > 0
