"""Layered decode graphs on the real tiny model with a fake graph: rows, padding, memory, whole answers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors

from decode_bench import Bench, caught_decode
from fake_graphs import FakeRecorder, fake_graphs
from harness import SteppedScheduler
from prompts import alone, prompt
from sglang_layered.runner.decode_graphs.graphs import PROLOGUE, GraphedDecode, LayeredDecodeGraphs
from sglang_layered.runner.decode_graphs.paths import DecodePaths, EagerDecode
from sglang_layered.upstream.graphs import StaticRows

pytestmark = pytest.mark.same_without_overlap(
    "rows of a replay; with overlap they are read later, when the next replay may have written over them"
)
NUM_LAYERS = 8
SIZES = (1, 2, 4, 7)
CUTS = st.tuples(st.integers(0, NUM_LAYERS - 1), st.integers(1, NUM_LAYERS)).filter(
    lambda cut: cut[0] < cut[1]
)
GRAPHS: dict[int, tuple[LayeredDecodeGraphs, FakeRecorder]] = {}


@pytest.fixture
def bench(stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch) -> Bench:
    runner, decode = stepped.scheduler.tp_worker.model_runner, caught_decode(stepped, 7)
    monkeypatch.setattr(runner, "attn_backend", TorchNativeAttnBackend(runner))  # as the graphs
    return Bench(runner, decode)


@pytest.fixture(params=[1, 3])
def graphs(request: pytest.FixtureRequest, bench: Bench) -> Iterator[LayeredDecodeGraphs]:
    """Captured once: it takes seconds."""
    if request.param not in GRAPHS:
        GRAPHS[request.param] = fake_graphs(bench.model_runner, request.param, SIZES)
    graphs, recorder = GRAPHS[request.param]
    yield graphs
    recorder.before_replay = lambda: None


def some(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.parametrize("num_rows", SIZES)
def test_full_buckets_equal_the_whole_forward_exactly(
    bench: Bench, graphs: LayeredDecodeGraphs, num_rows: int
) -> None:
    batch = bench.rows(num_rows)
    expected = bench.whole(batch)

    @some(8)
    @given(CUTS)
    def check(cut: tuple[int, int]) -> None:
        assert torch.equal(bench.around(graphs, batch, *cut), expected)

    check()


@pytest.mark.parametrize("num_rows", [3, 6])
@pytest.mark.parametrize("garbage", [float("nan"), -1e30])
def test_padding_never_leaks(
    bench: Bench, graphs: LayeredDecodeGraphs, num_rows: int, garbage: float
) -> None:
    """Before each replay the padding is spoilt. What differs is rounding: an expert's matrix is taller."""
    batch, bucket = bench.rows(num_rows), 4 if num_rows == 3 else 7
    expected = bench.whole(batch)
    spoilt: list[int] = []

    def spoil() -> None:
        for rows in graphs.rows.tensors.values():
            rows[num_rows:bucket] = garbage
        graphs._batches[bucket].input_ids[num_rows:] = 999
        spoilt.append(num_rows)

    graphs.recorder.before_replay = spoil

    @some(3)
    @given(CUTS)
    def check(cut: tuple[int, int]) -> None:
        got = bench.around(graphs, batch, *cut)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(got.argmax(-1), expected.argmax(-1))

    check()
    assert spoilt


def test_padding_rows_get_what_sglang_keeps_for_them(bench: Bench, graphs: LayeredDecodeGraphs) -> None:
    batch = bench.rows(5)
    with bench.planned(batch):
        graphs.load(bench.rows(7))
        graphs.load(batch)
    static = graphs._batches[7]
    assert static.seq_lens.tolist() == [*batch.seq_lens.tolist(), 1, 1]
    assert static.req_pool_indices.tolist() == [*batch.req_pool_indices.tolist(), 0, 0]
    assert static.out_cache_loc.tolist() == [*batch.out_cache_loc.tolist(), 0, 0]
    assert static.positions.tolist() == [*batch.positions.tolist(), 0, 0]
    assert 0 not in batch.req_pool_indices and 0 not in batch.out_cache_loc


def test_what_is_replayed_for_a_cut(bench: Bench, graphs: LayeredDecodeGraphs) -> None:
    """Bookkeeping against a list written by hand: group [2, 5) at 3 rows, so bucket 4."""
    recorder = graphs.recorder
    recorder.replayed.clear()
    bench.around(graphs, bench.rows(3), 2, 5)
    by_hand = {1: [range(2), range(5, 6), range(6, 8)], 3: [range(2, 3)]}[graphs.segments.granularity]
    assert recorder.replayed == [(4, name) for name in [PROLOGUE, *by_hand, "epilogue"]]


def test_logits_without_a_shared_buffer(bench: Bench) -> None:
    graphs, _ = fake_graphs(bench.model_runner, 8, (2,), with_logits_buffer=False)
    batch = bench.rows(2)
    assert torch.equal(bench.around(graphs, batch, 0, 8), bench.whole(batch))


def test_rows_that_no_graph_holds_run_eagerly(bench: Bench) -> None:
    graphs, recorder = fake_graphs(bench.model_runner, 8, (1, 4))
    chosen = DecodePaths(bench.model_runner, bench.calls)
    assert chosen.graphs is None, "SGLang has no decode graphs on CPU"
    chosen.graphs = graphs
    with bench.planned(bench.rows(4)):
        assert isinstance(chosen.of(bench.rows(4)), GraphedDecode)
        assert isinstance(chosen.of(bench.rows(5)), EagerDecode)
    with_states = bench.rows(2)
    with_states.capture_hidden_mode = SimpleNamespace(need_capture=lambda: True)
    assert not graphs.can_run(with_states)
    with pytest.raises(AssertionError, match="5 rows fit none"):
        graphs.load(bench.rows(5))
    assert not recorder.replayed


def test_a_recorded_call_that_follows_live_tensors_is_caught() -> None:
    recorder, live = FakeRecorder(), [torch.zeros(3)]

    def run() -> None:
        live[0].add_(1)

    with recorder.session():
        recorder.record("rows", run, lambda: None)
    recorder.replay("rows")
    assert live[0].tolist() == [4, 4, 4]
    live.insert(0, torch.zeros(3))
    with pytest.raises(AssertionError, match="rows uses other memory"):
        recorder.replay("rows")


def test_rows_handed_on_under_another_key_survive() -> None:
    """Layer 0 makes its input the residual: both outputs then lie where the other's static rows are."""
    sample = PPProxyTensors({"hidden_states": torch.zeros(2, 3), "residual": torch.zeros(2, 3)})
    rows = StaticRows([sample])
    hidden, residual = rows.tensors["hidden_states"].fill_(1), rows.tensors["residual"].fill_(2)
    rows.put(0, {"hidden_states": residual, "residual": hidden})
    assert hidden.unique().tolist() == [2] and residual.unique().tolist() == [1]
    with pytest.raises(AssertionError, match="rows at cut 0"):
        rows.put(0, {"hidden_states": hidden, "residual": None})


@pytest.mark.parametrize("granularity", [1, 3])
@pytest.mark.parametrize("sizes", [(4,), (1, 2)])
def test_answers_beside_cohorts_do_not_change(
    stepped: SteppedScheduler, monkeypatch: pytest.MonkeyPatch, granularity: int, sizes: tuple[int, ...]
) -> None:
    asked = [(prompt(12 + seed, 400 + seed), 25) for seed in range(3)] + [(prompt(300, 410), 6)]
    expected = [alone(stepped, *request) for request in asked]
    runner = stepped.loop._execution._runner
    graphs, recorder = fake_graphs(stepped.scheduler.tp_worker.model_runner, granularity, sizes)
    monkeypatch.setattr(runner.decode_paths, "graphs", graphs)
    running = [stepped.send(*request) for request in asked[:3]]
    stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == 3)
    recorder.replayed.clear()
    last = stepped.send(*asked[3])
    assert stepped.finish(*running, last) == expected
    num_replayed = sum(name == PROLOGUE for _, name in recorder.replayed)
    assert num_replayed == (5 if 4 in sizes else 0), "one per step of the cohort, or too many rows"
    assert graphs._attention.num_plans == num_replayed
