"""Inputs that harm SGLang 0.5.17 as released, in both modes: guarded by three seams."""

from types import SimpleNamespace

import pytest

from prompts import prompt as prompt_of
from sglang_layered.seams import must_run_apart


def sent_to(stepped, rid):
    """Tokens, and token ids of log-probabilities, that the client of `rid` was sent."""
    tokens, logprobs = [], []
    for output in stepped.detokenizer.sent:
        if rid in (getattr(output, "rids", None) or []):
            index = output.rids.index(rid)
            tokens += list(output.output_ids[index])
            logprobs += list(output.output_token_logprobs_idx[index])
    return tokens, logprobs


@pytest.fixture(params=["layered", "chunked"])
def in_mode(request, stepped):
    assert stepped.change({"layered_prefill": int(request.param == "layered")})
    yield stepped
    stepped.step_until(stepped.scheduler.is_fully_idle)
    assert stepped.change({"layered_prefill": 1})


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_a_retracted_request_has_a_log_probability_for_every_token(in_mode, num_steps):
    decode = in_mode.send(prompt_of(10, 8), 40)
    in_mode.step(3)
    rid = in_mode.send(prompt_of(90, 83), 5, return_logprob=True)
    in_mode.step(num_steps)
    with in_mode.full_pool():
        in_mode.step(2)
    (expected, _) = in_mode.finish(rid, decode)
    in_mode.step(2)
    assert sent_to(in_mode, rid) == (expected, expected)


@pytest.mark.parametrize("host", ["2.2.2.2", "10.0.0.1"])
def test_fields_of_disaggregation_change_nothing_where_it_is_off(in_mode, host):
    prompt = prompt_of(1300, 5)
    decode = in_mode.send(prompt_of(10, 8), 40)
    in_mode.step(3)
    rid = in_mode.send(prompt, 3, bootstrap_host=host, bootstrap_room=7, disagg_prefill_dp_rank=1)
    in_mode.step_until(lambda: in_mode.reqs[rid].finished(), limit=100)
    in_mode.finish(decode)
    in_mode.drain()  # nothing may have leaked
    again = in_mode.send(prompt, 3)
    assert len(in_mode.finish(again)[0]) == 3


def test_embeddings_and_token_ids_never_share_a_batch():
    """The rule alone: in float32, in which these tests step, SGLang cannot run embeddings."""
    ids, embeds = SimpleNamespace(input_embeds=None), SimpleNamespace(input_embeds=[[0.0]])
    assert must_run_apart([ids], embeds)
    assert must_run_apart([embeds], ids)
    for chosen, req in (([], ids), ([], embeds), ([ids], ids), ([embeds], embeds)):
        assert not must_run_apart(chosen, req)
