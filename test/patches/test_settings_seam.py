"""Guard of 0007: our settings are answered before SGLang reads its closed list of its own."""

import ast

from seam_trees import index_of

PATH = "srt/managers/scheduler.py"


def test_our_settings_are_answered_first(seam_file):
    body = seam_file(PATH).find("Scheduler", "set_internal_state").body
    at = index_of(body, "if layered_seams.owns_settings(self, recv_req):")
    assert at == 0
    assert ast.unparse(body[0].body[0]) == "return layered_seams.change_settings(self, recv_req)"


def test_every_other_request_reaches_upstream(seam_file):
    body = seam_file(PATH).find("Scheduler", "set_internal_state").body
    assert body[0].orelse == []
    assert "args_allow_update" in ast.unparse(body[1:])


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
