"""Steps and their work against a walk of every token through every layer."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.auto.step_times import NAMES, amounts
from sglang_layered.core.pacing import StepLoad
from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.coverage import paper_coverage, uniform_coverage
from sglang_layered_lab.cost.roofline import H200, Part, Roofline
from sglang_layered_lab.cost.sizes import MODELS, QWEN3_30B_A3B, from_config, layer_of, named, sizes_of
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps
from sglang_layered_lab.models.recipe import ExpertShape, ModelRecipe

REPO = Path(__file__).resolve().parents[2]
SMALL = ModelRecipe(
    arch="", preset="", dtype="bfloat16", num_layers=7, hidden_size=16, num_heads=4, num_kv_heads=2,
    head_size=4, intermediate_size=4, vocab_size=32, experts=ExpertShape(8, 2, 4),
)  # fmt: skip
DENSE = replace(SMALL, experts=None)


def work_of(load: StepLoad) -> tuple[Part, ...]:
    return Roofline(SMALL, uniform_coverage, H200).work(load)


def bytes_of_experts(load: StepLoad) -> float:
    return Roofline(SMALL, uniform_coverage, H200).expert_bytes(load)


def walk(way: Way, prompt_tokens: int, decode_rows: int, num_layers: int) -> list[Counter[tuple[str, int]]]:
    """Oracle: deal single tokens to steps; of each step, how many prompt and decode rows each layer sees."""
    steps: list[Counter[tuple[str, int]]] = []
    layered = way.kind == "layered" and decode_rows
    cohort = way.max_tokens if way.kind in ("whole", "layered") else None
    if way.kind in ("chunked", "mixed"):
        cohort = way.size - (decode_rows if way.kind == "mixed" else 0)
    seats = [0] * (way.size if layered else 1)
    for layer in range(num_layers):
        seats[layer % len(seats)] += 1
    edges = list(itertools.accumulate(seats, initial=0))
    for token in range(prompt_tokens):
        number = token // cohort if cohort else 0
        for group, (start, end) in enumerate(itertools.pairwise(edges)):
            index = number * len(seats) + group
            while len(steps) <= index:
                steps.append(Counter())
            steps[index].update(("prompt", layer) for layer in range(start, end))
    if layered or way.kind == "mixed":
        for step in steps:
            for layer in range(num_layers):
                step["decode", layer] += decode_rows
    return steps


@st.composite
def cases(draw: st.DrawFn) -> tuple[Way, int, int]:
    kind = draw(st.sampled_from(["whole", "chunked", "mixed", "layered"]))
    decode_rows = draw(st.integers(0, 5))
    size = {
        "whole": st.just(0),
        "chunked": st.integers(1, 40),
        "mixed": st.integers(decode_rows + 1, 40),
        "layered": st.integers(1, SMALL.num_layers),
    }[kind]
    most = draw(st.none() | st.integers(1, 50)) if kind in ("whole", "layered") else None
    return Way(kind, draw(size), max_tokens=most), draw(st.integers(1, 60)), decode_rows


@given(cases())
def test_steps_are_those_of_single_tokens(case: tuple[Way, int, int]) -> None:
    way, prompt_tokens, decode_rows = case
    steps = prompt_steps(SMALL.num_layers, way, prompt_tokens, Beside(decode_rows, 9.0))
    expected = walk(way, prompt_tokens, decode_rows, SMALL.num_layers)
    assert len(steps) == len(expected)
    for step, seen in zip(steps, expected, strict=True):
        prompt_layers = [count for (kind, _), count in seen.items() if kind == "prompt"]
        assert prompt_layers == [step.prompt_rows] * int(step.prompt_layers)
        assert sum(count for (kind, _), count in seen.items() if kind == "decode") == (
            step.decode_rows * SMALL.num_layers
        )


@given(cases())
def test_prompt_work_adds_up_to_that_of_single_rows(case: tuple[Way, int, int]) -> None:
    """FLOP are the same in every way, those of attention too: a row sees half of its own token."""
    way, prompt_tokens, _ = case
    steps = prompt_steps(SMALL.num_layers, way, prompt_tokens, Beside())
    parts = [part for step in steps for part in work_of(step) if part.kind != "head"]
    rows = sum(part.flop for part in parts if part.kind != "attention")
    assert rows == prompt_tokens * SMALL.num_layers * layer_of(SMALL).flop(1, 0.0)
    pairs = sum(token + 0.5 for token in range(prompt_tokens))
    flop = 4 * SMALL.num_heads * SMALL.head_size * SMALL.num_layers * pairs
    assert sum(part.flop for part in parts if part.kind == "attention") == pytest.approx(flop)


def test_joined_forwards_share_experts_and_forwards_apart_do_not() -> None:
    decode, alone = StepLoad(2, 20), StepLoad(0, 0, (6,), (0,), 3.0)
    fused, apart = (StepLoad(2, 20, (6,), (0,), 3.0, is_apart) for is_apart in (False, True))
    assert bytes_of_experts(apart) == pytest.approx(bytes_of_experts(decode) + bytes_of_experts(alone))
    assert bytes_of_experts(decode) < bytes_of_experts(fused) < bytes_of_experts(apart)
    assert sum(part.flop for part in work_of(fused)) == pytest.approx(
        sum(part.flop for part in work_of(apart))
    )


def test_padded_attention_extends_the_decode_rows_of_mixed_chunks() -> None:
    beside, way = Beside(2, 10.0), Way("mixed", 6)
    exact = prompt_steps(SMALL.num_layers, way, 8, beside)[1]
    padded = prompt_steps(SMALL.num_layers, way, 8, beside, is_padded=True)[1]
    assert exact == StepLoad(2, 20, (4,), (4,), 7.0)
    assert padded == StepLoad(0, 0, (4, 1, 1), (4, 10, 10), 7.0)
    pairs = amounts(sizes_of(SMALL, is_padded=True), padded)[NAMES.index("prompt_pairs")]
    assert pairs == pytest.approx(8**2 / 2 + 2 * 11**2 / 2)
    fused = (SMALL.num_layers, Way("layered", 2), 8, beside)
    assert prompt_steps(*fused) == prompt_steps(*fused, is_padded=True)


def test_no_rows_are_no_work() -> None:
    assert work_of(StepLoad()) == ()


def test_uniform_coverage_is_the_mean_over_all_draws() -> None:
    """Two rows of two of four experts each: every pair of draws."""
    shape = replace(SMALL, experts=ExpertShape(4, 2, 4))
    pairs = list(itertools.combinations(range(4), 2))
    touched = [len({*one, *other}) / 4 for one in pairs for other in pairs]
    assert uniform_coverage(shape, 1, 1) == pytest.approx(sum(touched) / len(touched))
    assert uniform_coverage(DENSE, 1, 0) == uniform_coverage(DENSE, 0, 9) == 1.0


@given(st.integers(1, 20_000), st.integers(0, 400))
def test_tables_are_monotone_and_never_above_all(prompt_rows: int, decode_rows: int) -> None:
    seen = paper_coverage(QWEN3_30B_A3B, prompt_rows, decode_rows)
    assert paper_coverage(QWEN3_30B_A3B, prompt_rows - 1, decode_rows) <= seen <= 1
    assert seen <= paper_coverage(QWEN3_30B_A3B, prompt_rows, decode_rows + 1)


def test_the_table_gives_its_points_and_one_row_its_experts() -> None:
    assert paper_coverage(QWEN3_30B_A3B, 64, 0) == pytest.approx(0.52)
    assert paper_coverage(QWEN3_30B_A3B, 8192, 0) == paper_coverage(QWEN3_30B_A3B, 99_999, 0)
    assert paper_coverage(QWEN3_30B_A3B, 0, 1) == paper_coverage(QWEN3_30B_A3B, 1, 0) == 8 / 128
    assert paper_coverage(QWEN3_30B_A3B, 64, 8) == pytest.approx(1 - 0.48 * 0.66)
    assert paper_coverage(QWEN3_30B_A3B, 0, 0) == 0.0


def test_shapes_of_configs() -> None:
    path = REPO / "scripts" / "gpu" / "models"
    for name, known in (("qwen3-30b-a3b", QWEN3_30B_A3B), ("gpt-oss-20b", MODELS["gpt-oss-20b"])):
        read = named(str(path / name / "config.json"))
        assert replace(read, arch=known.arch, preset=known.preset) == known
    dense = named(str(path / "qwen3-8b"))
    assert (dense.experts, dense.intermediate_size) == (None, 12288)
    config = json.loads((path / "qwen3-30b-a3b" / "config.json").read_text())
    assert from_config(config | {"torch_dtype": "float32"}).dtype == "float32"


@pytest.mark.parametrize(
    "change", [{"first_k_dense_replace": 1}, {"decoder_sparse_step": 2}, {"hidden_size": None}]
)
def test_configs_that_it_cannot_describe_are_refused(change: dict[str, int | None]) -> None:
    config = json.loads((REPO / "scripts/gpu/models/qwen3-30b-a3b/config.json").read_text()) | change
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(ConfigError):
        from_config(config)


def test_models_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qwen3-30b-a3b"):
        named(str(tmp_path / "nothing.json"))


@pytest.mark.parametrize(
    ("way", "prompt_tokens", "decode_rows"),
    [(Way("mixed", 4), 9, 4), (Way("layered", 8), 9, 1), (Way("whole"), 0, 0)],
)
def test_impossible_steps_are_refused(way: Way, prompt_tokens: int, decode_rows: int) -> None:
    with pytest.raises(ConfigError):
        prompt_steps(SMALL.num_layers, way, prompt_tokens, Beside(decode_rows, 5.0))


@pytest.mark.parametrize("values", [("mixed", 0), ("layered", 0)])
def test_impossible_ways_are_refused(values: tuple[str, int]) -> None:
    with pytest.raises(ConfigError):
        Way(*values)


def test_names_of_ways() -> None:
    names = [Way("whole").name, Way("mixed", 512).name, Way("layered", 4, is_apart=True).name]
    assert names == ["whole", "mixed 512", "layered 4 apart"]
