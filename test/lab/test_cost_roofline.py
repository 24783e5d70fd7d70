"""Physical rates: steps by hand, and the table of anchors that another program made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sglang_layered.core.pacing import StepLoad
from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.coverage import COVERAGES, uniform_coverage
from sglang_layered_lab.cost.roofline import DEVICES, H200, Device, Roofline
from sglang_layered_lab.cost.sizes import GPT_OSS_20B, QWEN3_30B_A3B, from_config, layer_of
from sglang_layered_lab.cost.ways import Beside, Prediction, Waits, Way, predict_prompt
from sglang_layered_lab.models.recipe import ExpertShape, ModelRecipe

TOY = ModelRecipe(
    arch="", preset="", dtype="bfloat16", num_layers=2, hidden_size=10, num_heads=2, num_kv_heads=1,
    head_size=3, intermediate_size=0, vocab_size=100, experts=ExpertShape(4, 1, 5),
)  # fmt: skip
SLOW_MEMORY = Device(1.0, math.inf, None)  # a byte takes 1 s, a FLOP nothing
SLOW_ARITHMETIC = Device(math.inf, 1.0, None)  # a FLOP takes 1 s, a byte nothing


def on_h200(coverage: str) -> Roofline:
    return Roofline(QWEN3_30B_A3B, COVERAGES[coverage], H200)


def test_sizes_of_the_two_models() -> None:
    layer = layer_of(QWEN3_30B_A3B)
    assert layer.expert_params * 2 == 9_437_184  # 3 * 2048 * 768 * 2 bytes
    assert layer.expert_bytes == 128 * 9_437_184  # 1.208 GB
    assert 48 * layer.expert_bytes == pytest.approx(57.98e9, rel=1e-4)
    assert 48 * layer.flop(1, 0.0) == pytest.approx(5.46e9, rel=1e-3)
    assert 24 * layer_of(GPT_OSS_20B).expert_bytes == pytest.approx(38.22e9, rel=1e-3)


def bytes_by_part(shape: ModelRecipe) -> dict[str, float]:
    parts = Roofline(shape, uniform_coverage, H200).work(StepLoad(1, 7))
    return {part.kind: part.num_bytes for part in parts}


def test_quantized_weights_are_as_wide_as_the_config_declares() -> None:
    file = Path(__file__).parents[2] / "scripts/gpu/models/gpt-oss-20b/config.json"
    config = json.loads(file.read_text())
    released = from_config(config | {"quantization_config": {"quant_method": "mxfp4"}})
    read, wide = bytes_by_part(released), bytes_by_part(from_config(config))
    assert read["experts"] == wide["experts"] * (1 / 2 + 1 / 32) / 2
    assert {**read, "experts": 0} == {**wide, "experts": 0}
    narrow = bytes_by_part(from_config(config | {"quantization_config": {"quant_method": "fp8"}}))
    assert {kind: num_bytes / wide[kind] for kind, num_bytes in narrow.items()} == {
        "dense": 1 / 2,
        "experts": 1 / 2,
        "attention": 1,
        "head": 1,
    }
    with pytest.raises(ConfigError, match="does not tell bytes a weight"):
        from_config(config | {"quantization_config": {"quant_method": "quark"}})


def test_toy_decode_step_by_hand() -> None:
    model = Roofline(TOY, uniform_coverage, SLOW_MEMORY)
    # dense: 2*10*3*(2+1) + 4*10 = 220 parameters, 440 bytes; experts: one row touches 1/4 of 4*150*2 = 1200;
    # KV: 7 tokens * 2*1*3*2 bytes = 84; twice, then 2*100*10 bytes of the output matrix
    assert model.step_s(StepLoad(1, 7)) == 2 * (440 + 300 + 84) + 2000
    assert model.expert_bytes(StepLoad(1, 7)) == 600


def test_toy_prompt_step_by_hand() -> None:
    """The prompt's 4 rows go through one of the two layers, alone."""
    model = Roofline(TOY, uniform_coverage, SLOW_ARITHMETIC)
    # 4 rows: 2*220*4 dense, 2*1*150*4 experts, attention 4*2*3 * 4 rows * 2 tokens, one row's output 2*1000
    assert model.step_s(StepLoad(0, 0, (4,), (0,), 1.0)) == 1760 + 1200 + 192 + 2000


def test_several_devices_sum_up_what_the_layers_give() -> None:
    model = Roofline(TOY, uniform_coverage, Device(math.inf, math.inf, 1.0))
    assert model.step_s(StepLoad(3, 9, (4,), (0,), 1.0)) == 2 * 10 * 2 * (2 * 3 + 4)  # 2 sums of 2 bytes


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
    assert 1000 * on_h200(coverage).step_s(Beside(rows, 2048).step()) == pytest.approx(milliseconds, abs=0.06)


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
    assert 16_000 * model.step_s(StepLoad(0, 0, (8192,), (0,), 3.0)) == pytest.approx(92, abs=0.6)
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
    seen = predict_prompt(model, Way("whole"), 8192, Beside(16, 2048), Waits(before_steps=0.5))
    decode_s = model.step_s(StepLoad(16, 16 * 2048))
    assert 1000 * seen.ttft_s == pytest.approx(90.2 + 500 * decode_s, abs=0.1)
    assert seen.worst_gap_s == pytest.approx(seen.worst_step_s + model.step_s(StepLoad(17, 16 * 2048 + 8192)))
    assert predict_prompt(model, Way("whole"), 8192).worst_gap_s is None


def test_rates_of_the_devices() -> None:
    one, two = DEVICES["h200"], DEVICES["2xh100"]
    assert (one.bytes_per_s, one.flop_per_s, one.link_bytes_per_s) == (4.3e12, 790e12, None)
    assert (two.bytes_per_s, two.flop_per_s) == pytest.approx((6.03e12, 1582.4e12))
    assert two.link_bytes_per_s == pytest.approx(360e9)
