"""Guard of 0010: refused settings are answered with an error before SGLang makes its list of booleans."""

import ast

from seam_trees import index_of

PATH = "srt/managers/tokenizer_control_mixin.py"
SEAM = "layered_seams.refuse_settings(responses)"


def test_the_answers_are_looked_at_when_all_are_there(seam_file):
    body = seam_file(PATH).find("TokenizerControlMixin", "set_internal_state").body
    at = index_of(body, SEAM)
    assert "set_internal_state_communicator(obj)" in ast.unparse(body[at - 1])
    assert ast.unparse(body[at - 1]).startswith("responses")


def test_what_was_not_refused_is_answered_as_before(seam_file):
    body = seam_file(PATH).find("TokenizerControlMixin", "set_internal_state").body
    assert index_of(body, SEAM) == len(body) - 2
    assert isinstance(body[-1], ast.Return)


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
    assert seam_file(PATH).imports_seams_first()
