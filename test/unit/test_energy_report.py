"""What is said of energy: doctor's lines, the JSON record, joules over windows and per token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_layered.energy import (
    EnergyMeter,
    Found,
    energy_between,
    energy_findings,
    joules_per_token,
    reading_record,
)
from sglang_layered.energy.replay import REPLAY_VARIABLE, Entry, ReplaySource


def test_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "sglang", "pynvml")
    code = f"import sys, sglang_layered.energy; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Run:
    """Three devices sampled ten times a second; `gpu0` and `gpu2` are away from 5 s to 35 s."""

    def __init__(self) -> None:
        self.now_s = 0.0
        away = Entry(5, error="bus error")
        scripts = {
            "gpu0": (Entry(0, watts=300), Entry(0.45, watts=100), away, Entry(35, watts=100)),
            "gpu1": (Entry(0, joules=0), Entry(100, joules=5000)),
            "gpu2": (Entry(0, joules=0), Entry(4.9, joules=490), away, Entry(35, joules=3500)),
        }
        sources = [ReplaySource(device, script, clock=self.clock) for device, script in scripts.items()]
        self.meter = EnergyMeter(sources, clock=self.clock)
        self.meter.sample()

    def clock(self) -> float:
        return self.now_s

    def reading_at(self, second: float):
        while self.now_s < second - 0.01:
            self.now_s += 0.1
            self.meter.sample()
        return self.meter.reading()


def test_energy_of_a_window_by_device() -> None:
    run = Run()
    first, second, _ = energy_between(run.reading_at(1), run.reading_at(4))
    assert (first.device, first.joules, first.complete) == ("gpu0", pytest.approx(300.0), True)
    assert (second.device, second.joules, second.complete) == ("gpu1", pytest.approx(150.0), True)
    assert first.error_j == pytest.approx(0.0, abs=1e-3)
    assert second.error_j == pytest.approx(5.0, abs=1e-3), "a counter may be one step late"


def test_windows_that_touch_a_loss_are_not_complete() -> None:
    run = Run()
    before, away, back, after = (run.reading_at(second) for second in (4, 20, 45, 50))
    complete = {
        name: [window.complete for window in energy_between(*ends)]
        for name, ends in {
            "into": (before, away),
            "out of": (away, back),
            "over": (before, back),
            "after": (back, after),
        }.items()
    }
    assert complete == {
        "into": [False, True, False],
        "out of": [False, True, False],
        "over": [False, True, True],  # what gpu2's counter gained meanwhile is counted
        "after": [True, True, True],
    }


def test_joules_per_token() -> None:
    per_token = joules_per_token(600.0, num_prompt_tokens=200, num_output_tokens=100)
    assert (per_token.prompt_j, per_token.output_j, per_token.total_j) == (3.0, 6.0, 2.0)


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_output_tokens", "expected"),
    [(0, 0, (None, None, None)), (0, 4, (None, 2.0, 2.0)), (4, 0, (2.0, None, 2.0))],
)
def test_no_tokens_no_joules_per_token(
    num_prompt_tokens: int, num_output_tokens: int, expected: tuple[float | None, ...]
) -> None:
    per_token = joules_per_token(
        8.0, num_prompt_tokens=num_prompt_tokens, num_output_tokens=num_output_tokens
    )
    assert (per_token.prompt_j, per_token.output_j, per_token.total_j) == expected


def test_a_reading_is_json() -> None:
    run = Run()
    record = json.loads(json.dumps(reading_record(run.reading_at(20))))
    assert record["age_s"] == 0
    lost, good, _ = record["devices"]
    assert lost["watts"] is None
    assert lost["lost"]["why"] == "bus error"
    assert lost["lost"]["for_s"] == pytest.approx(15.0, abs=0.2)
    assert lost["anomalies"]["num_losses"] == 1
    assert good == {
        "device": "gpu1",
        "source": "replay",
        "joules": pytest.approx(1000.0),
        "error_j": pytest.approx(5.0),
        "watts": pytest.approx(50.0),
        "idle_watts": pytest.approx(50.0),
        "lost": None,
        "anomalies": dict.fromkeys(lost["anomalies"], 0),
    }


def test_findings_name_sources_and_reasons_without_calling_them_errors() -> None:
    source = ReplaySource("gpu0", (Entry(0, watts=1),))
    assert list(energy_findings(Found((source,), ("CPU: no RAPL; use a host",)))) == [
        ("energy gpu0", "replay (from a file: no measurement)", None),
        ("energy", "not measured: CPU: no RAPL; use a host", None),
    ]


def test_findings_of_this_machine_are_never_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPLAY_VARIABLE, raising=False)
    findings = list(energy_findings())
    assert findings
    assert {remedy for _, _, remedy in findings} == {None}


def test_a_bad_replay_file_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(REPLAY_VARIABLE, str(tmp_path / "absent.json"))
    ((what, state, remedy),) = energy_findings()
    assert what == "energy" and "absent.json" in state
    assert remedy == f"correct the file or unset {REPLAY_VARIABLE}"
