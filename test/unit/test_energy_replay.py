"""The replay file: what it means, and how it refuses what it cannot mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import energy_replay as replay
import pytest
from energy_replay import REPLAY_VARIABLE, Entry, ReplaySource, environment_of, load_replay

from sglang_layered.energy.find import find_sources
from sglang_layered.energy.sources import CounterSample, PowerSample
from sglang_layered.errors import ConfigError, EnergyError


def example() -> Any:
    """The file that the module's docstring shows."""
    text = replay.__doc__ or ""
    return json.loads(text[text.index("{") : text.rindex("]}") + 2])


def written(folder: Path, record: Any) -> Path:
    path = folder / "replay.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def test_the_documented_file_takes_the_place_of_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, example())
    for name, value in environment_of(path).items():
        monkeypatch.setenv(name, value)
    found = find_sources(None, tmp_path)
    assert [(source.device, source.source) for source in found.sources] == [
        ("gpu0", "replay"),
        ("cpu-package-0", "replay"),
    ]
    assert found.missing == ()
    assert found.sources[0].read() == PowerSample(90)


def test_watts_and_errors_hold_and_a_loop_starts_again() -> None:
    now = [100.0]
    entries = (Entry(0, watts=90), Entry(5, error="lost"), Entry(6, watts=300), Entry(8, watts=1))
    source = ReplaySource("gpu0", entries, loop=True, clock=lambda: now[0])
    seen = {}
    for at_s in (0, 4.5, 5.5, 6, 7.5, 8, 13.5):
        now[0] = 100.0 + at_s
        try:
            sample = source.read()
            assert isinstance(sample, PowerSample)
            seen[at_s] = sample.power_w
        except EnergyError as error:
            seen[at_s] = str(error)
    assert seen == {0: 90, 4.5: 90, 5.5: "lost", 6: 300, 7.5: 300, 8: 90, 13.5: "lost"}


@pytest.mark.parametrize(
    ("loop", "at_s", "joules"),
    [
        (False, 2.5, 25),
        (False, 10, 100),
        (False, 1e6, 100),
        (True, 10, 100),
        (True, 12.5, 125),
        (True, 30, 300),
    ],
)
def test_joules_grow_evenly_and_go_on_over_a_loop(loop: bool, at_s: float, joules: float) -> None:
    now = [0.0]
    source = ReplaySource(
        "gpu0", (Entry(0, joules=7), Entry(10, joules=107)), loop=loop, clock=lambda: now[0]
    )
    source.read()
    now[0] = at_s
    assert source.read() == CounterSample(round((7 + joules) * 1e6))


def test_fewer_joules_are_a_reset_and_wrap_j_wraps() -> None:
    now = [0.0]
    reset = ReplaySource("gpu0", (Entry(0, joules=50), Entry(1, joules=2)), clock=lambda: now[0])
    wraps = ReplaySource(
        "cpu-package-0",
        (Entry(0, joules=19_990), Entry(1, joules=20_010)),
        wrap_j=10_000,
        clock=lambda: now[0],
    )
    samples = []
    for now[0] in (0.0, 0.5, 1.0):
        samples.append((reset.read().energy_uj, wraps.read().energy_uj))
    assert samples == [(50_000_000, 9_990_000_000), (50_000_000, 0), (2_000_000, 10_000_000)]


def test_a_clock_before_the_start_is_the_start() -> None:
    now = [10.0]
    source = ReplaySource("gpu0", (Entry(0, watts=1), Entry(1, watts=2)), clock=lambda: now[0])
    source.read()
    now[0] = -100.0
    assert source.read() == PowerSample(1)


def one(*samples: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"devices": [{"device": "gpu0", "samples": list(samples)}], **more}


START = {"at_s": 0, "watts": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "replay.json: TypeError"),
        ({}, "KeyError.*devices"),
        ({"devices": []}, "give one or more, each once"),
        ({"devices": one(START)["devices"] * 2}, "give one or more, each once"),
        (one(), "give a first entry with at_s 0"),
        (one({"at_s": 1, "watts": 1}), "give a first entry with at_s 0"),
        (one(START, START), "give entries with growing at_s"),
        (one({"at_s": 0}), "needs one of joules, watts, error"),
        (one({"at_s": 0, "watts": 1, "joules": 1}), "needs one of joules, watts, error"),
        (one({"at_s": 0, "watts": -1}), "no number from 0 on"),
        (one({"at_s": 0, "watts": "9"}), "no number from 0 on"),
        (one({"at_s": 0, "power": 1}), "TypeError.*power"),
        (one(START, {"at_s": 1, "joules": 1}), "give joules or watts, not both"),
        (one(START, loop=True), "give a loop two entries or more"),
        (one({"at_s": 0, "joules": 5}, {"at_s": 1, "joules": 4}, loop=True), "not below the first"),
        ({"devices": [{"device": "c", "wrap_j": 5, "samples": [START]}]}, "wrap_j from 10000 on"),
    ],
)
def test_what_it_cannot_mean_is_refused(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_replay(written(tmp_path, record))
    assert REPLAY_VARIABLE in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{REPLAY_VARIABLE}.*name a file that can be read"):
        load_replay(tmp_path / "absent.json")
