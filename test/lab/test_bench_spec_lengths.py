"""Lengths: fitted distributions and rows of files."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sglang_layered_lab.bench.lengths import DrawnLengths, FileLengths, draw_length, load_lengths
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.spec_load import DistributionSpec, LengthsSpec, Lognormal

SAMPLES = Path(__file__).parents[2] / "scripts" / "bench"
UNIFORM = DistributionSpec("uniform", min_tokens=1, max_tokens=300)


@given(mu=st.floats(2, 10), sigma=st.floats(0.05, 1.2), pair=st.sampled_from(["p50", "p90", "mean"]))
def test_any_two_figures_give_back_the_lognormal(mu: float, sigma: float, pair: str) -> None:
    known = stats.lognorm(sigma, scale=math.exp(mu))
    figures = {"mean": known.mean(), "p50": known.median(), "p90": known.ppf(0.9)}
    figures[pair] = None
    fitted = Lognormal.fit(**figures)
    assert (fitted.mu, fitted.sigma) == (pytest.approx(mu), pytest.approx(sigma, rel=1e-6))


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"p50_tokens": 5}, "exactly two"),
        ({"p50_tokens": 5, "p90_tokens": 9, "mean_tokens": 6}, "exactly two"),
        ({"p50_tokens": 5, "p90_tokens": 5}, "p90_tokens must be above p50"),
        ({"p50_tokens": 5, "mean_tokens": 4}, "mean_tokens must be above p50"),
        ({"p90_tokens": 5, "mean_tokens": 5}, r"between 0\.44 and 1 times p90"),
        ({"p90_tokens": 5, "mean_tokens": 2.1}, r"between 0\.44 and 1 times p90"),
    ],
)
def test_a_lognormal_that_does_not_exist_is_refused(figures: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributionSpec("lognormal", **figures)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(None, None), (100, None), (None, 1500), (300, 900)])
def test_drawn_lengths_follow_the_cut_lognormal(low: int | None, high: int | None) -> None:
    spec = DistributionSpec("lognormal", p50_tokens=500, p90_tokens=1700, min_tokens=low, max_tokens=high)
    draws = np.random.default_rng(1)
    lengths = np.array([draw_length(spec, draws) for _ in range(4000)])
    bottom, top = (low or 1) - 0.5, (high or math.inf) + 0.5
    assert bottom < lengths.min() and lengths.max() < top
    known = stats.lognorm(math.log(1700 / 500) / stats.norm.ppf(0.9), scale=500)
    counted = np.unique(lengths)
    share = (known.cdf(counted + 0.5) - known.cdf(bottom)) / (known.cdf(top) - known.cdf(bottom))
    seen = np.searchsorted(np.sort(lengths), counted, side="right") / len(lengths)
    worst = np.abs(seen - share).max()
    assert worst < stats.kstwo.ppf(0.99, len(lengths))


def test_uniform_lengths_have_both_ends_and_are_even() -> None:
    draws = np.random.default_rng(2)
    spec = DistributionSpec("uniform", min_tokens=3, max_tokens=7)
    seen = Counter(draw_length(spec, draws) for _ in range(5000))
    assert set(seen) == {3, 4, 5, 6, 7}
    assert stats.chisquare(list(seen.values())).pvalue > 0.01


def test_rows_of_a_file_are_scaled_cut_and_kept_in_order() -> None:
    plain = [
        tuple(map(int, line.split(","))) for line in (SAMPLES / "arxiv_lengths.csv").read_text().split()[1:]
    ]
    spec = LengthsSpec(file="arxiv_lengths.csv", order="file", output_scale=0.001, max_total_tokens=32768)
    lengths = load_lengths(spec, SAMPLES)
    assert isinstance(lengths, FileLengths)
    kept = [prompt for prompt, _ in plain if prompt + 1 <= 32768]
    assert (len(plain), len(kept), lengths.num_left_out) == (199, 194, 5)
    draws = np.random.default_rng(0)
    sizes = [lengths.size_of(index, draws) for index in range(200)]
    assert [size.prompt_tokens for size in sizes] == (kept + kept)[:200]
    assert {size.output_tokens for size in sizes} == {1}


def test_rows_are_drawn_with_replacement_from_all_rows() -> None:
    lengths = load_lengths(LengthsSpec(file="cpu-replay.csv"), SAMPLES)
    assert isinstance(lengths, FileLengths)
    draws = np.random.default_rng(0)
    seen = Counter(lengths.size_of(index, draws) for index in range(4000))
    assert set(seen) == set(lengths.rows)
    assert stats.chisquare(list(seen.values())).pvalue > 0.01


def test_the_sharegpt_sample_has_the_quantiles_that_its_spec_tells() -> None:
    lengths = load_lengths(LengthsSpec(file="sharegpt_lengths.csv"), SAMPLES)
    assert isinstance(lengths, FileLengths) and len(lengths.rows) == 200
    comment = (SAMPLES / "h200-sharegpt.toml").read_text()
    for name in ("prompt_tokens", "output_tokens"):
        ordered = sorted(getattr(row, name) for row in lengths.rows)
        assert f"{ordered[100]}, {ordered[180]}" in comment


def test_draws_above_the_limit_are_drawn_again() -> None:
    lengths = DrawnLengths(UNIFORM, UNIFORM, 100)
    draws = np.random.default_rng(0)
    sizes = [lengths.size_of(index, draws) for index in range(500)]
    assert max(size.prompt_tokens + size.output_tokens for size in sizes) == 100
    with pytest.raises(SpecError, match=r"^workload\.lengths\.max_total_tokens: 7 tokens are too few"):
        DrawnLengths(UNIFORM, DistributionSpec("fixed", tokens=7), 7).size_of(0, draws)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "none.csv"}, r"lengths\.file: none\.csv: cannot be read: No such file"),
        ({"prompt_column": "num_prefil_tokens"}, r"lengths\.file: .* did you mean 'num_prefill_tokens'\?"),
        ({"max_total_tokens": 5}, r"lengths\.max_total_tokens: no row of .* is within 5 tokens; give more"),
        ({"prompt_column": "timestamp_ms"}, r"lengths\.file: cpu-replay\.csv: a length is below 1"),
    ],
)
def test_bad_files_of_lengths(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_lengths(replace(LengthsSpec(file="cpu-replay.csv"), **changes), SAMPLES)
