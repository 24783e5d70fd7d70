"""Faults that the harness must find, each planted for one run beside a cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from memory_watch import WATCH
from scenario import Emulated

Plant = Callable[[Emulated, pytest.MonkeyPatch], None]


def forward_does_not_wait_for_the_scheduler(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(emulated.stepped.scheduler.forward_stream, "wait_stream", lambda stream: None)


def scheduler_does_not_wait_for_the_forward(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(emulated.stepped.scheduler, "_apply_war_barrier", lambda: None)


def side_does_not_wait_for_the_fork(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(emulated.side_stream, "wait_event", lambda event: None)


def nobody_waits_for_the_side(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    forward, side = emulated.stepped.scheduler.forward_stream, emulated.side_stream
    wait = forward.wait_stream
    patch.setattr(forward, "wait_stream", lambda stream: None if stream == side else wait(stream))


def an_input_is_freed_at_once(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """The forward reads a tensor of the schedule stream; the host lets go of it without `record_stream`."""
    _lend_positions(emulated, patch, is_recorded=False)


def an_input_is_recorded_and_freed(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """No fault."""
    _lend_positions(emulated, patch, is_recorded=True)


def _lend_positions(emulated: Emulated, patch: pytest.MonkeyPatch, *, is_recorded: bool) -> None:
    execution = emulated.stepped.loop._execution
    run = execution.run

    def run_on_lent(step: Any, strategy: str | None) -> Any:
        lent = step.prompt.positions.clone()
        WATCH.name(lent, "lent positions", "schedule")
        step.prompt.positions.copy_(lent)
        if is_recorded:
            lent.record_stream(emulated.stepped.scheduler.forward_stream)
        del lent
        return run(step, strategy)

    patch.setattr(execution, "run", run_on_lent)


def static_rows_move(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    rows = emulated.graphs.rows
    patch.setattr(rows, "tensors", {key: tensor.clone() for key, tensor in rows.tensors.items()})


def graphs_are_not_planned(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """Replays read the tables of an earlier step."""
    patch.setattr(emulated.graphs._attention, "plan", lambda batch, view: None)


def tokens_are_not_copied_in(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """Replays read the input ids of an earlier step."""
    inputs = emulated.graphs._inputs
    fill = inputs.fill

    def fill_all_but_ids(decode: Any, bucket: int) -> Any:
        before = inputs._buffers.input_ids[: decode.batch_size].clone()
        return fill(replace(decode, input_ids=before), bucket)

    patch.setattr(inputs, "fill", fill_all_but_ids)


def plan_has_a_row_too_few(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """The decode rows' attention is planned without the last one."""
    backend = emulated.model_runner.attn_backend
    plan = backend.init_forward_metadata

    def plan_fewer(batch: Any) -> None:
        if batch.forward_mode.is_decode():
            names = ("seq_lens", "req_pool_indices", "seq_lens_cpu")
            fewer = {name: getattr(batch, name)[:-1] for name in names if getattr(batch, name) is not None}
            batch = replace(batch, batch_size=batch.batch_size - 1, **fewer)
        plan(batch)

    patch.setattr(backend, "init_forward_metadata", plan_fewer)


def group_rows_move(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    rows = emulated.runner.group_graphs.rows
    patch.setattr(rows, "tensors", {key: tensor.clone() for key, tensor in rows.tensors.items()})


def group_positions_are_not_copied_in(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """Replays turn keys to the positions of an earlier step."""
    patch.setattr(emulated.runner.group_graphs._inputs, "fill", lambda prompt, decode, num_rows: None)


def group_does_not_attend(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """Between graphs nothing runs: layers go on with what attention gave an earlier step."""
    attention = emulated.runner.group_graphs._attention
    patch.setattr(attention, "serve", lambda prompt, planned, rows: None)
    patch.setattr(attention, "_planned", None)


def group_attends_by_an_old_plan(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """Decode rows attend in a group with what was planned for an earlier step."""
    graphs_are_not_planned(emulated, patch)


def pool_is_said_to_be_read_too_early(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """The event that the scheduler waits for comes before the step's plans."""
    execution = emulated.stepped.loop._execution
    run = execution.run

    def say_and_run(step: Any, strategy: str | None) -> Any:
        early = emulated.stepped.scheduler.forward_stream.record_event()
        return replace(run(step, strategy), read_done=early)

    patch.setattr(execution, "run", say_and_run)


def drafts_go_on_from_no_choice(emulated: Emulated, patch: pytest.MonkeyPatch) -> None:
    """The first draft behind a prompt attends to a slot that is nobody's, whatever the prompt chose."""
    drafts = emulated.stepped.scheduler.draft_worker.draft_worker
    extend = drafts._draft_extend_for_prefill

    def lose_choice(*args: Any) -> Any:
        draft = extend(*args)
        draft.dsa_topk_indices.zero_()
        return draft

    patch.setattr(drafts, "_draft_extend_for_prefill", lose_choice)


FAULTS: dict[str, tuple[str, Plant]] = {
    plant.__name__: (execution, plant)
    for execution, plant in (
        ("fused", forward_does_not_wait_for_the_scheduler),
        ("fused", scheduler_does_not_wait_for_the_forward),
        ("fused", pool_is_said_to_be_read_too_early),
        ("concurrent", side_does_not_wait_for_the_fork),
        ("concurrent", nobody_waits_for_the_side),
        ("fused", an_input_is_freed_at_once),
        ("fused", an_input_is_recorded_and_freed),
        ("fused", static_rows_move),
        ("fused", graphs_are_not_planned),
        ("fused", tokens_are_not_copied_in),
        ("fused", plan_has_a_row_too_few),  # last: the scheduler does not survive it
    )
}
GROUP_FAULTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        group_rows_move,
        group_positions_are_not_copied_in,
        group_does_not_attend,
        group_attends_by_an_old_plan,
    )
}
"""Of steps whose groups run by graphs, all fused."""
DRAFT_FAULTS: dict[str, Plant] = {plant.__name__: plant for plant in (drafts_go_on_from_no_choice,)}
"""Of sequential steps with drafts."""


@contextmanager
def planted(name: str, emulated: Emulated) -> Iterator[None]:
    """The fault is there inside."""
    with pytest.MonkeyPatch.context() as patch:
        plants = {name: plant for name, (_, plant) in FAULTS.items()} | GROUP_FAULTS | DRAFT_FAULTS
        plants[name](emulated, patch)
        yield
