"""Segments and buckets against layer lists and a linear search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import ConfigError, PlanError
from sglang_layered.runner.decode_graphs.segments import BatchBuckets, LayerSegments

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
    inside = [layer for index in cover.segments for layer in hands[index]]
    assert [*cover.head, *inside, *cover.tail] == list(range(start, end))
    whole = [index for index, hand in enumerate(hands) if set(hand) <= set(range(start, end))]
    assert list(cover.segments) == whole
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
    assert segments.cut(below.segments.stop) == start - len(below.tail)
    assert segments.cut(above.segments.start) == end + len(above.head)
    assert max(len(below.tail), len(above.head)) < granularity


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
