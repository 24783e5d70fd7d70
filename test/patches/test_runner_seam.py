"""Guard of 0006: a layered step runs inside the forward context, and no other pass can reach it."""

import ast

PATH = "srt/model_executor/model_runner.py"


def forward_context(seam_file):
    function = seam_file(PATH).find("ModelRunner", "_forward_raw")
    blocks = [node for node in ast.walk(function) if isinstance(node, ast.With)]
    return next(node for node in blocks if ast.unparse(node.items[0]) == "ctx_mgr")


def test_the_layered_step_is_the_first_thing_in_the_forward_context(seam_file):
    seam = forward_context(seam_file).body[0]
    assert ast.unparse(seam.test) == "layered_seams.has_step(forward_batch)"
    assert [ast.unparse(node) for node in seam.body] == ["return layered_seams.run_step(self, forward_batch)"]
    assert seam.orelse == []


def test_every_runner_dispatch_stands_behind_the_seam(seam_file):
    function = seam_file(PATH).find("ModelRunner", "_forward_raw")
    block = forward_context(seam_file)
    outside = [node for node in function.body if node is not block]
    assert block in function.body
    assert "execute(" not in "".join(ast.unparse(node) for node in outside)


def test_the_seams_are_imported_at_the_top(seam_file):
    assert seam_file(PATH).imports_seams_first()


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
