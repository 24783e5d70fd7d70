"""Guard of 0008: results are seen before and after SGLang processes them, and `/server_info` asks us."""

import ast

from seam_trees import index_of

PATH = "srt/managers/scheduler.py"


def test_before_results_is_first_and_after_results_last(seam_file):
    body = seam_file(PATH).find("Scheduler", "process_batch_result").body
    assert index_of(body, "layered_seams.before_results(self, batch)") == 0
    assert index_of(body, "layered_seams.after_results(self, batch)") == len(body) - 1
    assert not any(isinstance(node, ast.Return) for statement in body for node in ast.walk(statement))


def test_state_is_added_before_it_is_turned_into_plain_values(seam_file):
    body = seam_file(PATH).find("Scheduler", "get_internal_state").body
    at = index_of(body, "layered_seams.add_state(self, ret)")
    assert isinstance(body[-1], ast.Return)
    assert "msgspec_to_builtins(ret)" in ast.unparse(body[-1])
    assert index_of(body, "ret = get_context().resolved_server_args_dict()") < at < len(body) - 1


def test_every_event_loop_processes_results_there(seam_file):
    calls = [
        node
        for node in ast.walk(seam_file(PATH).patched)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("self.batch_result_processor.process_")
    ]
    names = {ast.unparse(node.func).rsplit(".", 1)[1] for node in calls}
    assert {"process_batch_result_decode", "process_batch_result_prefill"} <= names


def test_nothing_else_changes(seam_file):
    assert seam_file(PATH).adds_only_seams
