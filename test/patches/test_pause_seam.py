"""Guard of 0005: a retracting pause gives back our cohort before SGLang reads its result queue."""

import ast

from seam_trees import index_of

PATH = "srt/managers/scheduler.py"
SEAM = "layered_seams.on_pause(self)"


def test_on_pause_stands_between_the_in_place_return_and_the_result_queue(seam_file):
    body = seam_file(PATH).find("Scheduler", "pause_generation").body
    at = index_of(body, SEAM)
    assert index_of(body, "if recv_req.mode == 'in_place':") == at - 1
    assert isinstance(body[at - 1].body[-1], ast.Return)
    assert index_of(body, "if self.enable_overlap and self.last_batch:") == at + 1


def test_nothing_is_processed_or_retracted_before_on_pause(seam_file):
    body = seam_file(PATH).find("Scheduler", "pause_generation").body
    earlier = "".join(ast.unparse(node) for node in body[: index_of(body, SEAM)])
    later = "".join(ast.unparse(node) for node in body[index_of(body, SEAM) + 1 :])
    for word in ("popleft", "process_batch_result", "retract"):
        assert f"{word}(" not in earlier
    assert "popleft(" in later


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
