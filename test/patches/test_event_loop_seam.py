"""Guard of 0004: we are asked for the event loop before SGLang starts one of its own."""

import ast

from seam_trees import index_of

PATH = "srt/managers/scheduler.py"
SEAM = "if layered_seams.run_event_loop(scheduler):"


def test_our_loop_is_asked_before_any_of_sglangs(seam_file):
    body = seam_file(PATH).find("dispatch_event_loop").body
    at = index_of(body, SEAM)
    assert index_of(body, "if disaggregation_mode == DisaggregationMode.NULL:") == at + 1
    assert "event_loop" not in "".join(ast.unparse(node) for node in body[:at])


def test_sglang_starts_no_loop_after_ours(seam_file):
    body = seam_file(PATH).find("dispatch_event_loop").body
    seam = body[index_of(body, SEAM)]
    assert [ast.unparse(node) for node in seam.body] == ["return"]
    assert seam.orelse == []


def test_the_seams_are_imported_at_the_top(seam_file):
    assert seam_file(PATH).imports_seams_first()


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
