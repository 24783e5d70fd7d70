"""The checker of orders by itself: what streams and events order, and what they leave open."""

from __future__ import annotations

from order import Order


def test_work_of_one_stream_is_ordered() -> None:
    order = Order()
    order.access("rows", "forward", True, "a")
    order.access("rows", "forward", False, "b")
    order.access("rows", "forward", True, "c")
    assert order.violations == []
    assert order.num_accesses == 3


def test_two_streams_without_a_wait_are_not_ordered() -> None:
    order = Order()
    order.access("rows", "schedule", True, "allocate")
    order.access("rows", "forward", False, "plan")
    assert order.violations == [
        "rows: read on forward at plan is not ordered after write on schedule at allocate"
    ]


def test_reads_side_by_side_need_no_order_but_a_write_after_them_does() -> None:
    order = Order()
    for stream in ("forward", "side"):
        order.access("rows", stream, False, "plan")
    assert order.violations == []
    order.access("rows", "forward", True, "allocate")
    assert order.violations == [
        "rows: write on forward at allocate is not ordered after read on side at plan"
    ]


def test_a_wait_orders_what_was_recorded_and_nothing_later() -> None:
    order = Order()
    order.access("rows", "forward", False, "decode")
    early = order.record("forward")
    order.access("rows", "forward", False, "prompt")
    order.wait("schedule", early)
    order.access("rows", "schedule", True, "allocate")
    assert order.violations == [
        "rows: write on schedule at allocate is not ordered after read on forward at prompt"
    ]


def test_waits_carry_over_a_third_stream() -> None:
    order = Order()
    order.access("rows", "side", True, "group")
    order.wait("forward", order.record("side"))
    order.wait("schedule", order.record("forward"))
    order.access("rows", "schedule", True, "allocate")
    assert order.violations == []


def test_what_the_host_has_waited_for_comes_before_its_next_launch_on_any_stream() -> None:
    order = Order()
    order.access("rows", "copy", True, "copy")
    done = order.record("copy")
    order.access("rows", "forward", False, "too early")
    assert len(order.violations) == 1
    order.synchronize(done)
    order.access("rows", "schedule", False, "in time")
    assert len(order.violations) == 1


def test_memory_returns_when_other_streams_have_ended_or_are_recorded() -> None:
    order = Order()
    for name in ("freed early", "recorded", "waited for"):
        order.access(name, "schedule", True, "make")
    order.wait("forward", order.record("schedule"))
    for name in ("freed early", "recorded", "waited for"):
        order.access(name, "forward", False, "use")
    order.free("freed early", "schedule")
    order.free("recorded", "schedule", kept_for={"forward"})
    order.wait("schedule", order.record("forward"))
    order.free("waited for", "schedule")
    assert order.violations == [
        "freed early: its memory returns to schedule before the end of read on forward at use"
    ]
