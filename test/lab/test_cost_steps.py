"""Steps and their work against a walk of every token through every layer."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.coverage import PAPER_COVERAGE, CoverageTable, uniform_coverage
from sglang_layered_lab.cost.shape import MODELS, QWEN3_30B_A3B, ModelShape, from_config, named
from sglang_layered_lab.cost.step import PromptRows, Step, work_of
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps

REPO = Path(__file__).resolve().parents[2]
SMALL = ModelShape(7, 16, 8, 2, 4, 4, 2, 4, 32)
DENSE = ModelShape(7, 16, 1, 1, 4, 4, 2, 4, 32)


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
        assert step.prompt is not None
        prompt_layers = [count for (kind, _), count in seen.items() if kind == "prompt"]
        assert prompt_layers == [step.prompt.num_rows] * step.prompt.num_layers
        assert sum(count for (kind, _), count in seen.items() if kind == "decode") == (
            step.decode_rows * SMALL.num_layers
        )


@given(cases(), st.sampled_from(["exact", "padded"]))
def test_prompt_work_adds_up_to_that_of_single_rows(case: tuple[Way, int, int], attention: str) -> None:
    """Linear FLOP are the same in every way; exact attention too: a row sees half of its own token."""
    way, prompt_tokens, _ = case
    steps = prompt_steps(SMALL.num_layers, way, prompt_tokens, Beside())
    works = [work_of(SMALL, uniform_coverage, step, attention) for step in steps]
    parts = [part for work in works for part in work.parts if part.kind != "head"]
    assert sum(part.flop for part in parts) == prompt_tokens * SMALL.num_layers * SMALL.layer.flop(1, 0.0)
    pairs = sum(token + 0.5 for token in range(prompt_tokens))
    if attention == "padded":  # the square's half over all tokens so far, chunk by chunk
        ends = itertools.accumulate(step.prompt.num_rows for step in steps if step.prompt)
        pairs = sum(end * end / 2 for end in ends)
    flop = 4 * SMALL.num_heads * SMALL.head_size * SMALL.num_layers * pairs
    assert sum(part.attention_flop for part in parts) == pytest.approx(flop)


def test_joined_forwards_share_experts_and_forwards_apart_do_not() -> None:
    rows = PromptRows.of(6, 3)
    decode = work_of(SMALL, uniform_coverage, Step(2, 10.0))
    alone = work_of(SMALL, uniform_coverage, Step(prompt=rows))
    apart = work_of(SMALL, uniform_coverage, Step(2, 10.0, rows, "apart"))
    fused = work_of(SMALL, uniform_coverage, Step(2, 10.0, rows))
    assert apart.expert_bytes == pytest.approx(decode.expert_bytes + alone.expert_bytes)
    assert (apart.prompt_layer_calls, apart.decode_layer_calls) == (3, 7)
    assert (fused.prompt_layer_calls, fused.decode_layer_calls) == (3, 4)
    assert fused.sequence_calls == apart.sequence_calls == 7 * 2 + 3
    assert decode.expert_bytes < fused.expert_bytes < apart.expert_bytes
    assert fused.flop == pytest.approx(apart.flop)
    assert fused.link_bytes == 2 * 16 * 2 * (7 * 2 + 3 * 6)


def test_padded_attention_extends_the_decode_rows_of_mixed_chunks() -> None:
    rows = PromptRows.of(4, SMALL.num_layers, tokens_before=8)
    mixed = Step(2, 10.0, rows, "mixed")
    exact, padded = (work_of(SMALL, uniform_coverage, mixed, each) for each in ("exact", "padded"))
    per_pair = 4 * SMALL.num_heads * SMALL.head_size * SMALL.num_layers
    assert sum(part.attention_flop for part in exact.parts) == per_pair * (2 * 10 + 4 * 10)
    assert sum(part.attention_flop for part in padded.parts) == per_pair * (2 * 10**2 / 2 + 12**2 / 2)
    fused = Step(2, 10.0, PromptRows.of(12, SMALL.num_layers))
    works = [work_of(SMALL, uniform_coverage, fused, each) for each in ("exact", "padded")]
    assert works[0] == works[1]  # a prompt from its beginning, decode rows on their own attention


def test_no_rows_are_no_work() -> None:
    assert work_of(SMALL, uniform_coverage, Step()).parts == ()


def test_uniform_coverage_is_the_mean_over_all_draws() -> None:
    """Two rows of two of four experts each: every pair of draws."""
    shape = ModelShape(1, 8, 4, 2, 4, 1, 1, 4, 16)
    pairs = list(itertools.combinations(range(4), 2))
    touched = [len({*one, *other}) / 4 for one in pairs for other in pairs]
    assert uniform_coverage(shape, 1, 1) == pytest.approx(sum(touched) / len(touched))
    assert uniform_coverage(DENSE, 1, 0) == uniform_coverage(DENSE, 0, 9) == 1.0


@given(st.integers(1, 20_000), st.integers(0, 400))
def test_tables_are_monotone_and_never_above_all(prompt_rows: int, decode_rows: int) -> None:
    seen = PAPER_COVERAGE(QWEN3_30B_A3B, prompt_rows, decode_rows)
    assert PAPER_COVERAGE(QWEN3_30B_A3B, prompt_rows - 1, decode_rows) <= seen <= 1
    assert seen <= PAPER_COVERAGE(QWEN3_30B_A3B, prompt_rows, decode_rows + 1)


def test_tables_give_their_points_and_one_row_its_experts() -> None:
    table = CoverageTable(prompt=((64, 0.5),), decode=((1, 0.9), (8, 0.4)))
    assert table(QWEN3_30B_A3B, 64, 0) == table(QWEN3_30B_A3B, 999, 0) == 0.5
    assert table(QWEN3_30B_A3B, 0, 1) == table(QWEN3_30B_A3B, 1, 0) == 8 / 128
    assert table(QWEN3_30B_A3B, 64, 8) == pytest.approx(1 - 0.5 * 0.6)
    assert table(QWEN3_30B_A3B, 0, 0) == 0.0


def test_shapes_of_configs() -> None:
    path = REPO / "scripts" / "gpu" / "models"
    assert named(str(path / "qwen3-30b-a3b")) == QWEN3_30B_A3B
    assert named(str(path / "gpt-oss-20b" / "config.json")) == MODELS["gpt-oss-20b"]
    dense = named(str(path / "qwen3-8b"))
    assert (dense.num_experts, dense.expert_size) == (1, 12288)
    config = json.loads((path / "qwen3-30b-a3b" / "config.json").read_text())
    assert from_config(config, "float32").expert_param_bytes == 4


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


@pytest.mark.parametrize("values", [("mixed", 0), ("layered", 0), ("sideways", 1)])
def test_impossible_ways_are_refused(values: tuple[str, int]) -> None:
    with pytest.raises(ConfigError):
        Way(*values)


def test_names_of_ways() -> None:
    names = [Way("whole").name, Way("mixed", 512).name, Way("layered", 4, "apart").name]
    assert names == ["whole", "mixed 512", "layered 4 apart"]
