"""Guard of 0003: every set of server arguments is validated by us, whichever door it came through."""

import ast

from seam_trees import index_of

PATH = "srt/server_args.py"


def test_validation_stands_before_the_pdmux_check(seam_file):
    body = seam_file(PATH).find("ServerArgs", "check_server_args").body
    at = index_of(body, "layered_seams.check_server_args(self)")
    assert index_of(body, "if self.enable_pdmux:") == at + 1


def test_validation_is_always_reached(seam_file):
    body = seam_file(PATH).find("ServerArgs", "check_server_args").body
    at = index_of(body, "layered_seams.check_server_args(self)")
    earlier = [part for node in body[:at] for part in ast.walk(node)]
    assert not [part for part in earlier if isinstance(part, ast.Return)]


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
