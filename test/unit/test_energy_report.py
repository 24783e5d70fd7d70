"""What is said of energy: doctor's lines, the JSON record, joules per token."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from energy_replay import Entry, ReplaySource

from sglang_layered.cli import doctor
from sglang_layered.energy.find import SOURCES_VARIABLE
from sglang_layered.energy.meter import EnergyMeter, joules_per_token, reading_record
from sglang_layered.energy.sources import Found


def test_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "sglang", "pynvml")
    code = f"import sys, sglang_layered.energy.find; print([name for name in {heavy} if name in sys.modules])"
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


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_output_tokens", "expected"),
    [
        (4, 2, (2.0, 4.0, 8 / 6)),
        (0, 0, (None, None, None)),
        (0, 4, (None, 2.0, 2.0)),
        (4, 0, (2.0, None, 2.0)),
    ],
)
def test_joules_per_token_where_there_are_tokens(
    num_prompt_tokens: int, num_output_tokens: int, expected: tuple[float | None, ...]
) -> None:
    per_token = joules_per_token(8.0, num_prompt_tokens, num_output_tokens)
    assert per_token == dict(zip(("prompt", "output", "total"), expected, strict=True))


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


def test_findings_name_sources_and_reasons_without_calling_them_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found((ReplaySource("gpu0", (Entry(0, watts=1),)),), ("CPU: no RAPL; use a host",))
    monkeypatch.setattr(doctor, "find_sources", lambda gpu_ids: found)
    assert list(doctor.energy()) == [
        ("energy gpu0", "replay", None),
        ("energy", "not measured: CPU: no RAPL; use a host", None),
    ]


def test_findings_of_this_machine_are_never_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOURCES_VARIABLE, raising=False)
    findings = list(doctor.energy())
    assert findings
    assert {remedy for _, _, remedy in findings} == {None}


def test_sources_of_the_users_that_are_not_there_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCES_VARIABLE, "absent:sources")
    ((what, state, remedy),) = doctor.energy()
    assert what == "energy" and f"{SOURCES_VARIABLE}=absent:sources: No module named" in state
    assert remedy == f"correct it or unset {SOURCES_VARIABLE}"
