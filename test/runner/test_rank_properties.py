"""Any sequence of operations on two tensor ranks with several cohorts in flight: they take the same steps.

About 800 operations a case; `--hypothesis-profile=long` makes 100,000 (1000 examples of 100 made 69,035).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from own_process import found_by

SCRIPT = Path(__file__).with_name("rank_properties_run.py")


@pytest.mark.timeout(7200)
def test_any_sequence_of_operations_on_two_ranks(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    way = "without-overlap" if pytestconfig.getoption("--without-overlap") else "with-overlap"
    is_long = settings.get_current_profile_name() == "long"
    numbers = ("1450", "100") if is_long else ("20", "40")
    seen, other = found_by(SCRIPT, tmp_path / "found.json", way, *numbers, timeout_s=7000)
    assert seen == other
    assert len(seen) == 2
    for name, counted in seen.items():
        assert counted["steps"] > counted["operations"] > 500, name
