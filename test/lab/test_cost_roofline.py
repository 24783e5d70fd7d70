"""Physical rates: steps by hand, and the table of anchors that another program made."""

from __future__ import annotations

import pytest

from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered_lab.cost.costs import StepCosts
from sglang_layered_lab.cost.coverage import COVERAGES, uniform_coverage
from sglang_layered_lab.cost.devices import DEVICES, H200, TWO_H100, scaled
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.predict import Prediction, predict_prompt
from sglang_layered_lab.cost.shape import GPT_OSS_20B, QWEN3_30B_A3B, ModelShape
from sglang_layered_lab.cost.step import PromptRows, Step
from sglang_layered_lab.cost.ways import Beside, Way, layered_steps

TOY = ModelShape(
    num_layers=2,
    hidden_size=10,
    num_experts=4,
    num_experts_per_token=1,
    expert_size=5,
    num_heads=2,
    num_kv_heads=1,
    head_size=3,
    vocab_size=100,
)


def on_h200(coverage: str) -> StepModel:
    return StepModel(QWEN3_30B_A3B, COVERAGES[coverage], H200.costs())


def test_sizes_of_the_two_models() -> None:
    assert QWEN3_30B_A3B.layer.expert_params * 2 == 9_437_184  # 3 * 2048 * 768 * 2 bytes
    assert QWEN3_30B_A3B.layer.expert_bytes == 128 * 9_437_184  # 1.208 GB
    assert 48 * QWEN3_30B_A3B.layer.expert_bytes == pytest.approx(57.98e9, rel=1e-4)
    assert 48 * QWEN3_30B_A3B.kv_layer_bytes == 96 * 1024
    assert 48 * QWEN3_30B_A3B.layer.flop(1, 0.0) == pytest.approx(5.46e9, rel=1e-3)
    assert 24 * GPT_OSS_20B.layer.expert_bytes == pytest.approx(38.22e9, rel=1e-3)


def test_toy_decode_step_by_hand() -> None:
    """Slow memory: a byte takes 1 s, a FLOP nothing."""
    model = StepModel(TOY, uniform_coverage, StepCosts("max", byte=1.0, flop=0.0, attention_flop=0.0))
    # dense: 2*10*3*(2+1) + 4*10 = 220 parameters, 440 bytes; experts: one row touches 1/4 of 4*150*2 = 1200;
    # KV: 7 tokens * 2*1*3*2 bytes = 84; twice, then 2*100*10 bytes of the output matrix
    assert model.step_s(Step(1, 7)) == 2 * (440 + 300 + 84) + 2000
    assert model.work(Step(1, 7)).expert_bytes == 600


def test_toy_prompt_step_by_hand() -> None:
    """Slow arithmetic. The prompt's 4 rows go through one of the two layers, alone."""
    model = StepModel(TOY, uniform_coverage, StepCosts("max", byte=0.0, flop=1.0, attention_flop=1.0))
    step = Step(prompt=PromptRows.of(num_rows=4, num_layers=1))
    # 4 rows: 2*220*4 dense, 2*1*150*4 experts, attention 4*2*3 * 4 rows * 2 tokens, one row's output 2*1000
    assert model.step_s(step) == 1760 + 1200 + 192 + 2000


@pytest.mark.parametrize(
    ("coverage", "rows", "milliseconds"),
    [
        ("uniform", 1, 1.5),
        ("uniform", 8, 6.4),
        ("uniform", 64, 16.8),
        ("paper", 8, 5.5),
        ("paper", 16, 7.7),
        ("paper", 64, 12.9),
        ("paper", 128, 18.2),
    ],
)
def test_decode_step_of_the_anchors(coverage: str, rows: int, milliseconds: float) -> None:
    assert 1000 * on_h200(coverage).step_s(Step(rows, 2048)) == pytest.approx(milliseconds, abs=0.06)


def in_the_units_of_the_anchors(seen: Prediction) -> tuple[float, float, float]:
    return 1000 * seen.ttft_s, 1000 * seen.worst_step_s, seen.expert_bytes / 1e9


@pytest.mark.parametrize(
    ("coverage", "rows", "num_groups", "ttft_ms", "worst_ms", "gigabytes"),
    [
        ("paper", 0, 1, 90, 90, 57),
        ("paper", 8, 16, 174, 10.8, 353),
        ("paper", 16, 1, 91, 91, 58),
        ("paper", 16, 16, 206, 12.9, 466),
        ("paper", 16, 4, 114, 28.5, 139),
        ("paper", 64, 16, 287, 17.9, 658),
        ("uniform", 16, 16, 241, 15.1, 618),
        ("uniform", 16, 4, 121, 30, 170),
        ("uniform", 64, 4, 144, 36, 229),
        ("uniform", 64, 16, 346, 21.6, 914),
    ],
)
def test_layered_prompt_of_the_anchors(
    coverage: str, rows: int, num_groups: int, ttft_ms: float, worst_ms: float, gigabytes: float
) -> None:
    seen = predict_prompt(on_h200(coverage), Way("layered", num_groups), 8192, Beside(rows, 2048))
    assert in_the_units_of_the_anchors(seen) == pytest.approx((ttft_ms, worst_ms, gigabytes), abs=0.6)


def test_groups_beside_nothing_of_the_anchors() -> None:
    """What groups would cost where nothing decodes; the runtime then takes the prompt whole."""
    model = on_h200("paper")
    steps = list(layered_steps(LayerGroupPlan.even(48, 16), 8192, Beside()))
    assert 1000 * sum(map(model.step_s, steps)) == pytest.approx(92, abs=0.6)
    assert 1000 * max(map(model.step_s, steps)) == pytest.approx(5.8, abs=0.06)
    assert predict_prompt(model, Way("layered", 16), 8192).num_steps == 1


@pytest.mark.parametrize(
    ("coverage", "rows", "chunk", "ttft_ms", "worst_ms", "gigabytes"),
    [
        ("paper", 0, 512, 232, 16, 761),
        ("paper", 0, 2048, 103, 32, 214),
        ("paper", 16, 512, 263, 18, 839),
        ("paper", 16, 2048, 108, 33, 222),
        ("paper", 64, 512, 309, 21, 876),
        ("uniform", 16, 512, 283, 20, 928),
        ("uniform", 64, 2048, 120, 36, 232),
    ],
)
def test_chunked_prompt_of_the_anchors(
    coverage: str, rows: int, chunk: int, ttft_ms: float, worst_ms: float, gigabytes: float
) -> None:
    """The anchors' chunks are of prompt rows alone, SGLang's count the decode rows too."""
    seen = predict_prompt(on_h200(coverage), Way("mixed", chunk + rows), 8192, Beside(rows, 2048))
    assert in_the_units_of_the_anchors(seen) == pytest.approx((ttft_ms, worst_ms, gigabytes), abs=0.6)


def test_a_whole_prompt_makes_the_decodes_wait() -> None:
    model = on_h200("paper")
    seen = predict_prompt(model, Way("whole"), 8192, Beside(16, 2048), wait_steps=0.5)
    decode_s = model.step_s(Step(16, 2048))
    assert 1000 * seen.ttft_s == pytest.approx(90.2 + 500 * decode_s, abs=0.1)
    assert seen.worst_gap_s == pytest.approx(
        seen.worst_step_s + model.step_s(Step(17, (16 * 2048 + 8192) / 17))
    )
    assert predict_prompt(model, Way("whole"), 8192).worst_gap_s is None


def test_devices_and_what_carries_over() -> None:
    assert DEVICES["h200"].costs() == StepCosts("max", 1 / 4.3e12, 1 / 790e12, 1 / 790e12)
    fitted = StepCosts("sum", 2e-12, 3e-15, 4e-15, decode_layer_call=5e-6, step=6e-3, request=7e-3)
    there = scaled(fitted, H200, TWO_H100)
    assert there.byte == pytest.approx(2e-12 * 4.3 / 6.03)
    assert there.flop == pytest.approx(3e-15 * 790 / 1582.4)
    assert (there.law, there.decode_layer_call, there.step, there.request) == ("sum", 5e-6, 6e-3, 7e-3)
    assert there.link_byte == pytest.approx(1 / 360e9)
