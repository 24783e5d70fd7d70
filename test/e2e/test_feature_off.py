"""With layered mode off, patched SGLang does what SGLang as released does: same answers, same steps."""

from __future__ import annotations

import httpx
import pytest

from workload import Ask, answers, output_tokens, prompt, read_steps

pytestmark = pytest.mark.server

FLAGS = ("prefill_mode", "layered_group_tokens", "layered_num_groups", "layered_policy")


def one_by_one(url: str) -> list[list[int]]:
    """Requests in sequence, so that the steps do not depend on timing; the last two hit the prefix cache."""
    prompts = [prompt(length, length) for length in (5, 300, 1700, 64)]
    prompts += [prompts[1], prompts[2][:900] + prompt(40, 3)]
    return [output_tokens(answers(url, [Ask(tokens, 0.0, 20)])[0]) for tokens in prompts]


def test_answers_and_step_trace_equal_the_release(stock_moe, off_moe) -> None:
    traces = []
    outputs = []
    for served in (stock_moe, off_moe):
        served.server.flush_cache()
        already = len(read_steps(served.steps))
        outputs.append(one_by_one(served.url))
        traces.append(read_steps(served.steps)[already:])
    assert outputs[0] == outputs[1]
    assert len(traces[0]) >= 6 * 20  # 0.5.17 also runs the step that overlap launches behind the last token
    assert traces[0] == traces[1]
    assert all(step["overlap"] for step in traces[1]), "the release's default is the overlap scheduler"


def test_the_release_has_no_flag_of_ours_and_the_patched_one_shows_them(stock_moe, off_moe) -> None:
    release = httpx.get(f"{stock_moe.url}/server_info", trust_env=False).json()
    patched = httpx.get(f"{off_moe.url}/server_info", trust_env=False).json()
    assert not set(FLAGS) & release.keys()
    assert {name: patched[name] for name in FLAGS} == {
        "prefill_mode": "chunked",
        "layered_group_tokens": 512,
        "layered_num_groups": None,
        "layered_policy": "token-target",
    }
