"""A short soak: 500 disturbed requests on a layered server with too little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from soak_plan import SoakSpec
from soak_record import run_soak

pytestmark = pytest.mark.server


def test_500_disturbed_requests(tmp_path: Path) -> None:
    done = run_soak(SoakSpec.of(500), tmp_path, Console(quiet=True))
    done.write(tmp_path / "record.json")
    assert done.violations == []
    assert len(done.played.outcomes) == 500
