"""Guard of 0009: experts are counted from before the first CUDA graph is captured."""

import ast

from seam_trees import index_of

PATH = "srt/model_executor/model_runner.py"


def test_before_graphs_is_first_and_the_capture_follows(seam_file):
    body = seam_file(PATH).find("ModelRunner", "init_cuda_graphs").body
    assert index_of(body, "layered_seams.before_graphs(self)") == 0
    assert ast.unparse(body[1]).startswith("capture = capture_cuda_graphs(model_runner=self,")


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
