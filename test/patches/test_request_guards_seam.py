"""Guard of 0010 to 0012: requests are cleaned first, kinds kept apart, log-probabilities not lost."""

import ast

from seam_trees import index_of

SCHEDULER = "srt/managers/scheduler.py"
STREAMER = "srt/managers/scheduler_components/output_streamer.py"


def test_a_request_is_cleaned_before_anything_reads_it(seam_file):
    body = seam_file(SCHEDULER).find("Scheduler", "handle_generate_request").body
    assert index_of(body, "layered_seams.clean_request(self, recv_req)") == 0


def test_kinds_are_kept_apart_before_a_request_is_prepared(seam_file):
    function = seam_file(SCHEDULER).find("Scheduler", "_get_new_batch_prefill_raw")
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
    body = next(node.body for node in loops if ast.unparse(node.iter) == "self.waiting_queue")
    at = index_of(body, "if layered_seams.must_run_apart(adder.can_run_list, req):")
    assert isinstance(body[at].body[0], ast.Break)
    assert at < index_of(body, "req.init_next_round_input(self.tree_cache)")


def test_the_range_is_shortened_before_it_is_used(seam_file):
    branches = [node for node in ast.walk(seam_file(STREAMER).patched) if isinstance(node, ast.If)]
    body = next(node.body for node in branches if ast.unparse(node.test) == "req.return_logprob")
    at = index_of(body, "if layered_seams.lost_its_token(req):")
    assert index_of(body, "logprob_end = max(len(output_ids_), 1)") == at - 1
    assert ast.unparse(body[at].body[0]) == "logprob_end = len(output_ids_)"


def test_nothing_else_changes(seam_file):
    assert seam_file(SCHEDULER).adds_only_seams
    assert seam_file(STREAMER).adds_only_seams
