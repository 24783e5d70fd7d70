"""Segments and buckets against layer lists and a linear search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, PlanError
from sglang_layered.runner.decode_graphs.segments import MOST_GRAPHS, BatchBuckets, LayerSegments, to_capture

DEPTHS = st.integers(1, 96)


def segments_by_dealing(num_layers: int, granularity: int) -> list[list[int]]:
    """Oracle: deal the layers out one by one, a new hand when one is full."""
    hands: list[list[int]] = []
    for layer in range(num_layers):
        if not hands or len(hands[-1]) == granularity:
            hands.append([])
        hands[-1].append(layer)
    return hands


@given(st.data(), DEPTHS)
def test_cover_runs_every_layer_once_in_order_with_as_many_segments_as_fit(
    data: st.DataObject, n: int
) -> None:
    granularity = data.draw(st.integers(1, n))
    start = data.draw(st.integers(0, n))
    end = data.draw(st.integers(start, n))
    hands = segments_by_dealing(n, granularity)
    segments = LayerSegments(n, granularity)
    cover = segments.cover(start, end)
    covered = [index for run in cover.runs for index in run]
    inside = [layer for index in covered for layer in hands[index]]
    assert [*cover.head, *inside, *cover.tail] == list(range(start, end))
    whole = [index for index, hand in enumerate(hands) if set(hand) <= set(range(start, end))]
    assert covered == whole
    assert segments.num_segments == len(hands)
    assert [segments.cut(index) for index in range(len(hands))] == [hand[0] for hand in hands]
    assert segments.cut(len(hands)) == n


@given(st.data(), DEPTHS, st.booleans())
def test_ranges_beside_a_group_meet_the_static_rows_at_a_segment_edge(
    data: st.DataObject, n: int, single: bool
) -> None:
    granularity = 1 if single else data.draw(st.integers(1, n))
    start = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(start + 1, n))
    segments = LayerSegments(n, granularity)
    below, above = segments.cover(0, start), segments.cover(end, n)
    assert not below.head and not above.tail
    assert (segments.layers(below.runs[-1])[1] if below.runs else 0) == start - len(below.tail)
    assert (segments.layers(above.runs[0])[0] if above.runs else n) == end + len(above.head)
    assert max(len(below.tail), len(above.head)) < granularity


@given(st.data(), DEPTHS)
def test_ranges_beside_a_group_are_few_runs_and_all_captured(data: st.DataObject, n: int) -> None:
    segments = LayerSegments(n, data.draw(st.integers(1, n)))
    start = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(start + 1, n))
    most = 2 * segments.num_segments.bit_length()
    for cover in (segments.cover(0, start), segments.cover(end, n)):
        assert set(cover.runs) <= set(segments.runs)
        assert len(cover.runs) <= most


def test_runs_of_a_model_written_by_hand() -> None:
    """Eleven layers by two: six segments, the pairs of them, and the first four beside the last two."""
    runs = [(run.start, run.stop) for run in LayerSegments(11, 2).runs]
    leaves, pairs = [(index, index + 1) for index in range(6)], [(0, 2), (2, 4), (4, 6)]
    assert runs == [*leaves, *pairs, (0, 4)]
    assert LayerSegments(1, 1).runs == (range(1),)


@pytest.mark.parametrize(("num_layers", "num_sizes", "granularity"), [(48, 11, 3), (8, 11, 1), (94, 11, 6)])
def test_the_finest_segments_with_few_graphs(num_layers: int, num_sizes: int, granularity: int) -> None:
    segments = LayerSegments.fitting(num_layers, num_sizes)
    assert segments.granularity == granularity
    assert num_sizes * segments.num_graphs <= MOST_GRAPHS
    finer = LayerSegments(num_layers, granularity - 1) if granularity > 1 else None
    assert finer is None or num_sizes * finer.num_graphs > MOST_GRAPHS


def test_one_segment_where_even_that_is_too_many() -> None:
    assert LayerSegments.fitting(48, 1000).num_segments == 1


@given(st.sets(st.integers(1, 300), min_size=1))
def test_thinned_sizes_pad_to_half_as_much_again(sizes: set[int]) -> None:
    buckets = BatchBuckets(tuple(sorted(sizes)))
    thinned = buckets.thinned(1.5)
    assert set(thinned.sizes) <= sizes
    assert {min(sizes), max(sizes)} <= set(thinned.sizes)
    for size in sizes:
        kept = thinned.bucket_for(size)
        assert kept is not None
        assert kept == size or kept < 1.5 * size
    assert len(thinned.sizes) <= 16
    exact = BatchBuckets(buckets.sizes, exact=True)
    assert exact.thinned(2.0) == exact


SIZES_OF_512 = (*range(1, 9), *range(10, 33, 2), *range(40, 65, 4), *range(72, 257, 8), *range(272, 513, 16))


@pytest.mark.parametrize(("largest", "num_sizes"), [(160, 11), (256, 9), (512, 10)])
def test_more_sizes_are_spaced_wider_before_a_layer_runs_eagerly(largest: int, num_sizes: int) -> None:
    stock = BatchBuckets(tuple(size for size in SIZES_OF_512 if size <= largest))
    segments, buckets = to_capture(48, None, stock)
    assert segments == LayerSegments(48, 3)
    assert len(buckets.sizes) == num_sizes
    assert to_capture(48, 5, stock) == (LayerSegments(48, 5), stock.thinned(1.5))


@pytest.mark.parametrize(("num_layers", "granularity"), [(8, 0), (8, -1), (8, 9)])
def test_segments_that_do_not_fit_are_refused(num_layers: int, granularity: int) -> None:
    with pytest.raises(PlanError, match=f"{num_layers} layers into segments of {granularity}"):
        LayerSegments(num_layers, granularity)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (0, 9), (5, 4)])
def test_layers_outside_the_model_are_refused(start: int, end: int) -> None:
    with pytest.raises(PlanError, match="not within"):
        LayerSegments(8, 2).cover(start, end)


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(-2, 320), st.booleans())
def test_bucket_is_the_smallest_that_holds_the_rows(sizes: set[int], num_rows: int, exact: bool) -> None:
    buckets = BatchBuckets(tuple(sorted(sizes)), exact)
    fits = {size for size in sizes if size == num_rows or (size > num_rows and not exact)}
    expected = min(fits) if fits and num_rows > 0 else None
    assert buckets.bucket_for(num_rows) == expected
    assert buckets.max_rows == max(sizes)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_buckets_that_are_not_ascending_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="ascending"):
        BatchBuckets(sizes)


def test_granularity_flag_is_checked_against_the_model() -> None:
    with pytest.raises(ConfigError, match="--layered-graph-granularity -1: give 1 or more"):
        LayeredConfig(layered_graph_granularity=-1)
    LayeredConfig(layered_graph_granularity=0).check_depth(8)
    LayeredConfig(layered_graph_granularity=8).check_depth(8)
    with pytest.raises(ConfigError, match="--layered-graph-granularity 9: the model has 8 layers"):
        LayeredConfig(layered_graph_granularity=9).check_depth(8)
