"""Guard of 0009: counting begins before the first CUDA graph, and layered graphs are captured at start."""

import ast

from seam_trees import index_of

PATH = "srt/model_executor/model_runner.py"
SCHEDULER = "srt/managers/scheduler.py"


def test_before_graphs_is_first_and_the_capture_follows(seam_file):
    body = seam_file(PATH).find("ModelRunner", "init_cuda_graphs").body
    assert index_of(body, "layered_seams.before_graphs(self)") == 0
    assert ast.unparse(body[1]).startswith("capture = capture_cuda_graphs(model_runner=self,")


def test_after_graphs_is_last(seam_file):
    """All that SGLang's captures left is on the runner by then, and nothing of it is written afterwards."""
    body = seam_file(PATH).find("ModelRunner", "init_cuda_graphs").body
    assert index_of(body, "layered_seams.after_graphs(self)") == len(body) - 1


def test_the_kv_cache_is_sized_after_the_captures(seam_file):
    """Where SGLang sizes it by what captures left, the layered ones are counted."""
    body = [ast.unparse(node) for node in seam_file(SCHEDULER).find("Scheduler", "init_model_worker").body]
    [captures] = [at for at, text in enumerate(body) if "init_all_cuda_graphs" in text]
    [sizing] = [at for at, text in enumerate(body) if "post_capture_resize_kv_pool" in text]
    assert captures < sizing


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
