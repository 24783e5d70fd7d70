"""A soak of a fake server: it holds while the server is right, and each fault of the server ends it red."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import soak
import soak_operator
from fake_sglang import FakeSglang, Fault, right_answer
from soak_asks import Ask, Outcome
from soak_checks import all_violations, memory_verdict
from soak_client import SoakClient
from soak_desk import Desk, MemorySample, Played
from soak_events import late_steps, read_events
from soak_plan import Abort, Disturbance, DisturbanceKind, SoakPlan, SoakSpec, make_plan
from soak_record import SoakRecord
from soak_replay import Expected, longest_outputs

PATIENT_S, IMPATIENT_S = 120.0, 1.0
EVERYTHING: tuple[DisturbanceKind, ...] = (
    "retract",
    "group tokens",
    "lull",
    "abort half",
    "abort all",
    "client dies",
)


def small_plan() -> SoakPlan:
    spec = SoakSpec(num_requests=60, num_prompts=12, num_streams=6, max_prompt_tokens=60, max_output_tokens=8)
    disturbances = tuple(
        Disturbance(8 * number, kind, 0.02, flushes=True, group_tokens=8, seed=number)
        for number, kind in enumerate(EVERYTHING, 1)
    )
    return replace(make_plan(spec), disturbances=disturbances)


def soak_of(folder: Path, fault: Fault | None) -> tuple[Played, list[str]]:
    """What was played, and every violation."""
    events = folder / "events.jsonl"
    hang_s = IMPATIENT_S if fault == "hang" else PATIENT_S

    async def play() -> Played:
        async with FakeSglang(events, fault).serving() as url:
            client = SoakClient(
                url, small_plan(), lambda: 1, lambda: None, events=events, scenes=(), hang_s=hang_s
            )
            return await client.play()

    played = asyncio.run(play())
    expected = {
        prompt: Expected(tuple(right_answer(prompt, number)), number)
        for prompt, number in longest_outputs(played.outcomes).items()
    }
    late = late_steps(played.outcomes, played.abort_alls, read_events(events))
    found = all_violations(played, expected, memory_verdict(played.memory), [], late)
    return played, played.trouble + found


def test_a_right_server_is_played_to_the_end(tmp_path: Path) -> None:
    played, violations = soak_of(tmp_path, None)
    assert violations == []
    assert sum(outcome.ask.rid.startswith("soak-") for outcome in played.outcomes) == 60
    assert set(EVERYTHING) <= played.operator.keys()
    assert played.operator["conversations"]
    assert len(played.abort_alls) == 1
    assert played.at_trouble == {}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("hang", "hang: no token for"),
        ("late token", "late answer, 1 events after"),
        ("late steps", "late answer: "),
        ("wrong token", "instead of"),
        ("leak", "the server is not idle as at its start"),
    ],
)
def test_each_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, said: str) -> None:
    monkeypatch.setattr(soak_operator, "IDLE_S", 0.2)  # nothing comes back later
    played, violations = soak_of(tmp_path, fault)
    assert any(said in line for line in violations), violations
    if fault == "hang":
        assert "soak-0000" in played.trouble[0]
        assert played.at_trouble.keys() == {"/v1/loads", "/server_info"}


def test_a_client_that_would_abort_later_is_done_when_another_abort_came_first(tmp_path: Path) -> None:
    async def play() -> Outcome:
        async with FakeSglang(tmp_path / "events.jsonl").serving() as url:
            desk = Desk(url)
            later = Abort("abort request", after_tokens=1000)
            outcome = desk.begin(Ask("soak-0000001", (3, 4), 2000, later))
            following = asyncio.create_task(desk.follow(outcome))
            while not outcome.tokens:
                await asyncio.sleep(0)
            await desk.abort(outcome)
            await asyncio.wait_for(following, PATIENT_S)
            await desk.http.aclose()
            return outcome

    assert asyncio.run(play()).ending == "abort"


def test_a_violation_ends_the_command_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(spec: SoakSpec, *_: object) -> SoakRecord:
        played = Played(at_trouble={"server log": "the end of the log"})
        return SoakRecord(
            spec, {}, played, memory_verdict([MemorySample(0.0, 0, 1)]), 0.0, ["hang: nobody is answered"]
        )

    monkeypatch.setattr(soak, "run_soak", run)
    monkeypatch.setattr(soak.signal, "signal", lambda *_: None)
    done = CliRunner().invoke(soak.soak, ["100", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "nobody is answered" in done.output
    assert "the end of the log" in done.output
