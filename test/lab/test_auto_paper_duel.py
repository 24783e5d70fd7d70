"""Duels on paper: on a steady machine they are arithmetic, on a restless one auto keeps what can be kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from auto_cases import NUM_LAYERS, SIZES, linear
from sglang_layered.cli.main import cli
from sglang_layered.core.pacing import StepLoad
from sglang_layered.errors import BenchError
from sglang_layered_lab.traces.paper_duel import (
    HELD,
    Outcome,
    Point,
    Setting,
    duel,
    duels,
    fixed_settings,
    surprises_of,
    verdict,
)
from sglang_layered_lab.traces.trace import Trace, TracedStep

POINT = Point(2048, 4)


def trace_of(odd: Callable[[], float], num_steps: int = 400) -> Trace:
    """Steps of all kinds on the linear machine, each times `odd`."""
    dice, steps, now_s = random.Random(1), [], 0.0
    for number in range(num_steps):
        streams = dice.choice((2, 4, 8))
        load = StepLoad(streams, 600 * streams)
        if number % 3:
            rows, layers = dice.choice((256, 512, 2048, 4096)), dice.choice((1.0, 6.0, float(NUM_LAYERS)))
            load = replace(load, prompt_lens=(rows,), prefix_lens=(0,), prompt_layers=layers)
        took_s = linear(load) * odd()
        steps.append(TracedStep(number, now_s + took_s, "layered", now_s, took_s, {}, {}, {}, load))
        now_s += took_s + 1e-4
    return Trace(tuple(steps), SIZES, "by hand", 8192)


def steady() -> Trace:
    return trace_of(lambda: 1.0)


def restless(part: float = 0.1) -> Trace:
    dice = random.Random(2)
    return trace_of(lambda: 1 + dice.uniform(-part, part))


def test_a_fixed_setting_takes_what_its_steps_take() -> None:
    setting = Setting("G=4", num_groups=4)
    [outcome] = duel(steady(), [POINT], [setting], rounds=2, seed=0).values()
    step_s = linear(StepLoad(4, 2400, (2048,), (0,), NUM_LAYERS / 4)) + 1e-4
    assert len(outcome.ttfts_s) == 4 and len(outcome.gaps_s) == 16
    assert outcome.ttft_s == pytest.approx(4 * step_s, rel=0.02)
    assert outcome.gaps_s == pytest.approx([step_s] * 16, rel=0.02)


def test_surprises_are_those_of_the_trace() -> None:
    assert surprises_of(steady()) == pytest.approx([1.0] * len(surprises_of(steady())), abs=0.01)
    spread = np.std(surprises_of(restless()))
    assert 0.04 < spread < 0.09  # uniform within 10 %: 0.058, and what the predictions add
    with pytest.raises(BenchError, match="record a longer run"):
        surprises_of(trace_of(lambda: 1.0, num_steps=70))


def test_the_same_seed_gives_the_same_duel_and_another_one_another() -> None:
    settings = [Setting("auto", 0.02), *fixed_settings(NUM_LAYERS, (256,))]
    first, again, other = (duel(restless(), [POINT], settings, 1, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert {name for _, name in first} == {"auto", "G=1", "G=2", "G=4", "G=8", "G=16", "chunk 256"}


def test_auto_keeps_what_a_fixed_setting_keeps() -> None:
    limits_s = (0.012, 0.02, 0.04)
    found = duels(restless(), [POINT, Point(512, 8)], limits_s, (256,), rounds=4, seeds=3)
    for _, each in found.groupby(["tokens", "streams", "limit_s"]):
        assert (each.holds & each.fixed).sum() >= each.fixed.sum() - 1
        assert each.late.sum() <= 0.01 * each.gaps.sum()
    assert found.ratio.mean() < 1.1


def test_a_verdict_says_who_holds_and_takes_the_soonest_of_those_that_do() -> None:
    own, slow, quick = (
        Outcome([ttft_s], [0.01] * 99 + [last]) for ttft_s, last in ((3, 0.03), (4, 0.01), (2, 0.05))
    )
    quick.gaps_s[0] = 0.05
    assert own.share(0.02) == HELD and quick.share(0.02) < HELD
    held = {"holds": True, "fixed": True, "late": 1, "gaps": 100, "ratio": 0.75}
    assert verdict(own, [slow, quick], 0.02) == held
    alone = verdict(slow, [quick], 0.02)
    assert alone["holds"] and not alone["fixed"] and np.isnan(alone["ratio"])


def test_the_command_needs_a_limit_and_a_trace(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["paper-duel", str(tmp_path / "none")])
    assert result.exit_code == 2 and "--limit-ms" in result.output
    record = Path(__file__).resolve().parents[2] / "results/auto/2026-11-28-2cores-trace/trace.jsonl.gz"
    args = ["paper-duel", str(record), "--limit-ms", "900", "--prompt-tokens", "2048", "--streams", "2"]
    result = CliRunner().invoke(cli, [*args, "--seeds", "1", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert "auto does in 1 of 1 duels" in result.output
