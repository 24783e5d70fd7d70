"""Coverage tables, topics, the bias as data, and coverage against sets: no model and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.router_bias import RouterBias, RouterScales
from sglang_layered_lab.models.router_coverage import RouterStates, choose, draws_for, measure
from sglang_layered_lab.models.router_targets import DECODE, PROMPT, CoverageTarget, read_targets
from sglang_layered_lab.models.router_topics import plan_topics, topics_of

BIAS = RouterBias(
    seed=3,
    num_experts=32,
    vocab_size=1024,
    first_channel=64,
    topics=plan_topics(1024, 6),
    channel_value=0.5,
    unit_of_layer={0: 2.0, 3: 5.0},
    scales=RouterScales(2.0, 0.3, 0.7, 1.5),
    topic_bonus=9.0,
)


def states(
    num_groups: int, num_tokens: int, num_experts: int, num_chosen: int, seed: int = 0
) -> RouterStates:
    """Rows whose logits are independent: every row picks its experts by lot."""
    logits = np.random.default_rng(seed).normal(size=(2, num_groups, num_tokens, num_experts))
    logits = logits.astype(np.float32)
    tokens = np.arange(num_groups * num_tokens).reshape(num_groups, num_tokens)
    return RouterStates(logits, np.ones(logits.shape[:3], np.float32), choose(logits, num_chosen), tokens)


def test_the_default_table_is_the_papers() -> None:
    table = read_targets()
    aimed = {(row.kind, row.num_tokens): row.coverage for row in table.rows if row.fit}
    decode = {(DECODE, 16): 0.47, (DECODE, 32): 0.55, (DECODE, 64): 0.69, (DECODE, 128): 0.863}
    assert aimed == {**decode, (PROMPT, 512): 0.82}
    assert "2510.08055" in table.source and (table.most(DECODE), table.most(PROMPT)) == (128, 2048)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "Expecting"),
        ("[]", "rows"),
        ({"rows": []}, "no row is to be met"),
        ({"rows": [{"decode_rows": 4, "coverage": 0.5, "fit": False}]}, "no row is to be met"),
        ({"rows": [3]}, "row 1"),
        ({"rows": [{"decode_rows": 4, "coverage": 0.5}], "row": []}, "unknown key 'row'"),
        ({"rows": [{"decode_rows": 4, "covrage": 0.5}]}, "row 1 has the unknown key 'covrage'"),
        ({"rows": [{"coverage": 0.5}]}, "one of decode_rows and prompt_tokens"),
        ({"rows": [{"decode_rows": 4, "prompt_tokens": 4, "coverage": 0.5}]}, "one of"),
        ({"rows": [{"decode_rows": 4}]}, "coverage None"),
        ({"rows": [{"decode_rows": 4, "coverage": 50}]}, "coverage 50"),
        ({"rows": [{"decode_rows": 4, "coverage": 0}]}, "coverage 0"),
        ({"rows": [{"decode_rows": 4.5, "coverage": 0.5}]}, r"decode_rows 4\.5"),
        ({"rows": [{"prompt_tokens": True, "coverage": 0.5}]}, "prompt_tokens True"),
        ({"rows": [{"decode_rows": 4, "coverage": 0.5, "fit": 1}]}, "fit 1"),
        ({"rows": [{"decode_rows": 4, "coverage": 0.5}, {"decode_rows": 4, "coverage": 0.6}]}, "two rows"),
    ],
)
def test_a_bad_table_is_refused_by_name(tmp_path: Path, content: object, named: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelRecipeError, match=f"--targets .*table.json: .*{named}"):
        read_targets(path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRecipeError, match=r"--targets .*none\.json"):
        read_targets(tmp_path / "none.json")


@given(vocab_size=st.integers(64, 200_000), num_topics=st.integers(1, 40))
def test_topics_are_equal_ranges_side_by_side_within_the_usable_ids(vocab_size: int, num_topics: int) -> None:
    topics = plan_topics(vocab_size, num_topics)
    ids = [token for first, end in topics for token in range(first, end)]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert len({end - first for first, end in topics}) == 1
    assert vocab_size // 8 == ids[0] and ids[-1] < vocab_size * 7 // 8 < ids[-1] + 1 + num_topics


@pytest.mark.parametrize("num_topics", [0, -1, 769])
def test_a_number_of_topics_that_cannot_be_is_refused(num_topics: int) -> None:
    with pytest.raises(ModelRecipeError, match="--topics"):
        plan_topics(1024, num_topics)


def test_topics_are_read_from_the_record_and_none_elsewhere(tmp_path: Path) -> None:
    assert topics_of(tmp_path) is None and topics_of(tmp_path / "nowhere") is None
    record = tmp_path / "router_bias.json"
    record.write_text(json.dumps({"bias": BIAS.as_dict()}))
    assert topics_of(str(tmp_path)) == BIAS.topics
    record.write_text("{}")
    with pytest.raises(ModelRecipeError, match=r"router_bias\.json"):
        topics_of(tmp_path)


def test_the_bias_survives_its_record() -> None:
    restored = RouterBias.from_dict(json.loads(json.dumps(BIAS.as_dict())))
    assert restored == BIAS
    assert np.array_equal(restored.router_columns(3), BIAS.router_columns(3))


def test_a_token_sets_its_own_channels() -> None:
    channels = BIAS.token_channels()
    topics = BIAS.topics_of_tokens()
    assert channels.shape == (1024, BIAS.num_channels) == (1024, 23)
    assert (channels[:, 0] == 1).all()
    for token, topic in enumerate(topics):
        inside = [index for index, (first, end) in enumerate(BIAS.topics) if first <= token < end]
        assert inside == ([] if topic == -1 else [topic])
        assert np.flatnonzero(channels[token, 1:7]).tolist() == inside
    assert np.allclose((channels[:, 7:] ** 2).sum(axis=1), 1)
    assert len({tuple(code) for code in channels[:, 7:]}) > 1000
    head = BIAS.head_columns()
    assert np.array_equal(head[:, 1:7], 9 * channels[:, 1:7]) and not head[:, [0, *range(7, 23)]].any()


def test_pushes_have_the_sizes_that_the_scales_say() -> None:
    token_pushes = [BIAS.token_channels() @ BIAS.router_columns(layer).T for layer in (0, 3)]
    taste = BIAS.taste(3)
    assert int((taste.rank > 1 - 0.3).sum()) in (9, 10)  # 0.3 of 32
    assert np.allclose(taste.topics.mean(axis=0), 0, atol=1e-6) and np.allclose(taste.topics.std(axis=0), 1)
    of_words = BIAS.token_channels()[:, 7:] @ taste.pushes(BIAS.scales)[7:]
    assert of_words.std(axis=0) == pytest.approx(np.full(32, 1.5), rel=0.1)
    favoured = taste.rank > 1 - 0.3
    by_expert = token_pushes[1].mean(axis=0)
    assert by_expert[favoured].mean() - by_expert[~favoured].mean() == pytest.approx(5.0 * 2.0, abs=0.5)
    assert not np.allclose(token_pushes[0] / 2.0, token_pushes[1] / 5.0)  # layers differ in taste
    assert not taste.pushes(RouterScales()).any()


def test_the_share_of_favoured_experts_is_met_over_many_layers_in_finer_steps_than_one_expert() -> None:
    shares = [(BIAS.taste(layer).rank > 1 - 0.34).mean() for layer in range(400)]
    assert np.mean(shares) == pytest.approx(0.34, abs=0.005)


@given(seed=st.integers(0, 1000), num_chosen=st.integers(1, 7))
def test_choice_is_that_of_a_sort(seed: int, num_chosen: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 2, 4, 8)).astype(np.float32)
    for row, chosen in zip(logits.reshape(-1, 8), choose(logits, num_chosen).reshape(-1, 8), strict=True):
        best = sorted(range(8), key=lambda expert: -row[expert])[:num_chosen]
        assert set(np.flatnonzero(chosen)) == set(best)


@pytest.mark.parametrize("target", [CoverageTarget(DECODE, 5, 0.5), CoverageTarget(PROMPT, 5, 0.5)])
def test_coverage_is_that_of_sets(target: CoverageTarget) -> None:
    found = states(3, 17, num_experts=8, num_chosen=2)
    draws = draws_for(target, found, seed=1)
    by_draw = []
    for draw in draws:
        layers = []
        for layer in range(2):
            touched: set[int] = set()
            for token in draw.tokens:
                touched |= set(np.argsort(found.own_logits[layer, draw.group, token])[-2:].tolist())
            layers.append(len(touched) / 8)
        by_draw.append(layers)
    coverage = measure(found.chosen, draws)
    assert coverage.mean == pytest.approx(np.mean(by_draw))
    assert coverage.std == pytest.approx(np.std(np.mean(by_draw, axis=1)))
    assert coverage.by_layer == pytest.approx(tuple(np.mean(by_draw, axis=0)))


def test_draws_are_requests_of_one_step_or_windows_of_one_prompt() -> None:
    found = states(3, 17, num_experts=8, num_chosen=2)
    rows = draws_for(CoverageTarget(DECODE, 5, 0.5), found, seed=1)
    assert all(len(set(draw.tokens)) == 5 and max(draw.tokens) < 17 for draw in rows)
    assert {draw.group for draw in rows} == {0, 1, 2} and len({tuple(draw.tokens) for draw in rows}) > 40
    windows = draws_for(CoverageTarget(PROMPT, 5, 0.5), found, seed=1)
    seen = sorted((draw.group, *draw.tokens) for draw in windows)
    assert seen == [(group, *range(start, start + 5)) for group in range(3) for start in (0, 5, 10)]


def test_windows_go_on_from_group_to_group() -> None:
    kept = states(4, 17, num_experts=8, num_chosen=2).windows(5)
    assert kept.tokens.tolist() == [list(range(start, start + 5)) for start in (0, 17 + 5, 34 + 10, 51)]
    assert kept.own_logits.shape == (2, 4, 5, 8) and kept.channel.shape == (2, 4, 5)


@pytest.mark.parametrize("num_rows", [4, 16, 64])
def test_rows_that_pick_by_lot_cover_what_the_formula_says(num_rows: int) -> None:
    found = states(8, 128, num_experts=64, num_chosen=4)
    coverage = measure(found.chosen, draws_for(CoverageTarget(DECODE, num_rows, 0.5), found, seed=0))
    assert coverage.mean == pytest.approx(1 - (1 - 4 / 64) ** num_rows, abs=0.02)


def test_topics_and_targets_need_no_torch() -> None:
    code = (
        "import sys, sglang_layered_lab.models.router_topics, sglang_layered_lab.models.router_targets,"
        "sglang_layered_lab.cli.calibrate_router;"
        "assert not {'torch', 'transformers', 'scipy', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
