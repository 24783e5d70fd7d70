"""Guard of 0002: our fields are on ServerArgs before `dataclass` reads its annotations."""

import ast

PATH = "srt/server_args.py"


def test_the_decorator_is_the_innermost_one(seam_file):
    decorators = [ast.unparse(entry) for entry in seam_file(PATH).find("ServerArgs").decorator_list]
    assert decorators == ["dataclasses.dataclass", "layered_seams.server_args_fields"]


def test_the_seams_are_imported_ahead_of_the_class(seam_file):
    assert seam_file(PATH).imports_seams_first()


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
