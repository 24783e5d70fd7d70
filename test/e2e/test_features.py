"""No serving feature is lost: each gives the release's answer when its prompt goes through layer groups.

Every prompt here runs beside requests that decode, and the step log must show that it passed several groups.
Both servers run without overlap: under it penalties and grammars depend on timing, in the release too.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import features_scenarios as scenarios
from features_client import (
    Pair,
    ask,
    assert_same,
    call,
    events,
    generate,
    get,
    new_rid,
    really_layered,
    start,
    wait_for,
)
from features_requests import (
    GENERATE,
    GREEDY,
    HTTP,
    LISTED,
    NUM_OUTPUTS,
    PAUSES,
    PROMPT,
    STOPS,
    STREAMS,
    STRUCTURED,
)
from features_servers import FLAGS, GROUP_TOKENS, Served, serve_both
from features_text import joined_text, log_fields, metric_names, stream_events
from release_served import HAS_GET_LOAD, REFUSED_BY_THE_RELEASE
from sglang_layered_lab.models import make_model
from workload import prompt

pytestmark = pytest.mark.server

PLAIN = GENERATE["plain"].body()


@pytest.fixture(scope="module")
def servers(
    tiny_qwen3_moe: Path, pristine_site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with serve_both(tmp_path_factory.mktemp("features"), tiny_qwen3_moe, pristine_site, FLAGS) as served:
        yield Pair(*served)


@pytest.fixture
def pair(servers: Pair) -> Pair:
    return servers.flushed()


@pytest.fixture
def other_weights(pair: Pair, tiny_qwen3_moe: Path, tmp_path: Path) -> Iterator[Path]:
    """The same model with other numbers; both servers get their own back after the test."""
    yield make_model("qwen3_moe", "tiny", tmp_path / "other", seed=1)
    for served in (pair.layered, pair.stock):
        scenarios.load_weights(served, tiny_qwen3_moe)


def refused(pair: Pair, path: str, body: dict[str, Any]) -> bool:
    return [call(served, path, body).status_code for served in (pair.layered, pair.stock)] == [400, 400]


@pytest.mark.parametrize("name", GENERATE)
def test_generate(pair: Pair, name: str) -> None:
    feature = GENERATE[name]
    if feature.needs_compiler and shutil.which("g++") is None:
        pytest.skip(reason="SGLang compiles penalties with g++, which this machine lacks")
    if name in REFUSED_BY_THE_RELEASE:
        assert refused(pair, "/generate", feature.body())
        return
    mine, theirs = pair.generate(feature.body(), **feature.neighbours)
    assert_same(mine, theirs)
    assert (mine["output_ids"] == pair.greedy["output_ids"]) == (feature.tokens == "greedy")


@pytest.mark.parametrize("name", STOPS)
def test_stop(pair: Pair, name: str) -> None:
    sampling = {**GREEDY, "ignore_eos": False, **STOPS[name](pair.greedy)}
    mine, theirs = pair.generate(PLAIN | {"sampling_params": sampling})
    assert_same(mine, theirs)
    assert mine["meta_info"]["finish_reason"]["type"] == "stop"
    assert 1 < len(mine["output_ids"]) < NUM_OUTPUTS


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_output(pair: Pair, name: str) -> None:
    options, pattern = STRUCTURED[name]
    sampling = {**GREEDY, "max_new_tokens": 150, "ignore_eos": False, **options}
    mine, theirs = pair.generate(PLAIN | {"sampling_params": sampling})
    assert_same(mine, theirs)
    assert re.fullmatch(pattern, mine["text"])


@pytest.mark.parametrize("name", HTTP)
def test_other_interfaces(pair: Pair, name: str) -> None:
    path, body = HTTP[name]
    if name in REFUSED_BY_THE_RELEASE:
        assert refused(pair, path, body)
        return
    assert_same(*pair.both(path, body))


@pytest.mark.parametrize("name", STREAMS)
def test_streaming(pair: Pair, name: str) -> None:
    path, body = STREAMS[name]
    whole = ask(pair.stock, path, body)
    already = len(events(pair.layered))
    with pair.beside():
        chunks = stream_events(pair.layered, path, body | {"stream": True})
    assert really_layered(events(pair.layered)[already:])
    assert len(chunks) > 5
    assert joined_text(chunks) == joined_text([whole])


def test_custom_logit_processor(pair: Pair) -> None:
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    sampling = {**GREEDY, "custom_params": {"token_ids": list(range(500))}}
    processor = DisallowedTokensLogitsProcessor.to_str()
    mine, theirs = pair.generate(PLAIN | {"sampling_params": sampling, "custom_logit_processor": processor})
    assert_same(mine, theirs)
    assert min(mine["output_ids"]) >= 500


def test_list_of_prompts_with_own_ids_and_parameters(pair: Pair) -> None:
    rids = [new_rid("listed") for _ in range(3)]
    theirs = generate(pair.stock, LISTED)
    already = len(events(pair.layered))
    with pair.beside():
        mine = generate(pair.layered, LISTED | {"rid": rids})
    assert_same(mine, theirs)
    assert [answer["meta_info"]["id"] for answer in mine] == rids
    assert set(rids[:2]) <= set(really_layered(events(pair.layered)[already:]))


def test_sampling_with_temperature_stays_within_top_k(pair: Pair) -> None:
    sampling = {**GREEDY, "temperature": 1.0, "top_k": 3, "n": 4}
    body = PLAIN | {"sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 3}
    with pair.beside():
        outputs = pair.through_groups("/generate", body)
    for answer in outputs:
        meta = answer["meta_info"]
        assert len(answer["output_ids"]) == NUM_OUTPUTS
        for token, best in zip(answer["output_ids"], meta["output_top_logprobs"], strict=True):
            assert token in [entry[1] for entry in best]
    assert len({tuple(answer["output_ids"]) for answer in outputs}) > 1


def test_prefix_cache_and_cache_salt(pair: Pair) -> None:
    salted = PLAIN | {"extra_key": "salt"}
    longer = PLAIN | {"input_ids": [*PROMPT, *prompt(300, 12)]}
    bodies = [PLAIN, PLAIN, salted, salted, longer]
    theirs = [generate(pair.stock, body) for body in bodies]
    with pair.beside():
        mine = [generate(pair.layered, body) for body in bodies]
    assert_same(mine, theirs)
    cached = [answer["meta_info"]["cached_tokens"] for answer in mine]
    assert cached == [0, len(PROMPT) - 1, 0, len(PROMPT) - 1, len(PROMPT)]


def test_sessions(pair: Pair) -> None:
    theirs = scenarios.conversation(pair.stock)
    already = len(events(pair.layered))
    with pair.beside():
        mine = scenarios.conversation(pair.layered)
    assert_same(mine, theirs)
    passed = really_layered(events(pair.layered)[already:])
    assert {answer["meta_info"]["id"] for answer in mine} <= set(passed)


def test_higher_priority_overtakes_in_the_queue(pair: Pair) -> None:
    low = PLAIN | {"input_ids": list(prompt(900, 32)), "priority": 1}
    high = PLAIN | {"input_ids": list(prompt(1024, 33)), "priority": 9}
    theirs = [generate(pair.stock, body) for body in (low, high)]
    to_come = []
    with scenarios.in_flight(pair, "first", 31):
        for body in (low, high):
            to_come.append(start(pair.layered, body))
            time.sleep(0.1)
    mine = [answer.result() for answer in to_come]
    assert_same(mine, theirs)
    low_entry, high_entry = (answer["meta_info"]["forward_entry_time"] for answer in mine)
    assert high_entry < low_entry


@pytest.mark.parametrize("mode", PAUSES)
def test_pause_with_a_cohort_in_flight(pair: Pair, mode: str) -> None:
    with scenarios.in_flight(pair, "paused", 41) as (body, to_come):
        assert call(pair.layered, "/pause_generation", {"mode": mode}).status_code == 200
        wait_for(lambda: scenarios.stands_still(pair.layered), "a paused server to stand still")
        assert mode == "abort" or not to_come.done()
        assert call(pair.layered, "/continue_generation", {}).status_code == 200
    reasons = {"abort": ["aborted"], "retract": ["paused"], "in_place": []}
    assert scenarios.drops_of(events(pair.layered), body["rid"]) == reasons[mode]
    if mode == "abort":
        assert to_come.result()["meta_info"]["finish_reason"]["type"] == "abort"
    else:
        assert to_come.result()["output_ids"] == generate(pair.stock, body)["output_ids"]
    assert_same(*pair.generate(PLAIN))


def test_update_weights_of_an_idle_server(pair: Pair, other_weights: Path) -> None:
    for served in (pair.layered, pair.stock):
        scenarios.load_weights(served, other_weights)
    mine, theirs = pair.both_beside(lambda served: generate(served, PLAIN))
    assert_same(mine, theirs)
    assert mine["output_ids"] != pair.greedy["output_ids"]


def test_update_weights_while_requests_are_retracted(pair: Pair, other_weights: Path) -> None:
    """The dropped cohort begins again with the new weights: nothing of its filled layers is used."""
    with scenarios.in_flight(pair, "retracted", 42, check_neighbours=False) as (body, to_come):
        call(pair.layered, "/pause_generation", {"mode": "retract"})
        scenarios.load_weights(pair.layered, other_weights, flush_cache=False)
        call(pair.layered, "/continue_generation", {})
    assert scenarios.drops_of(events(pair.layered), body["rid"]) == ["paused"]
    before = generate(pair.stock, body)
    scenarios.load_weights(pair.stock, other_weights)
    after = generate(pair.stock, body)
    assert to_come.result()["output_ids"] == after["output_ids"] != before["output_ids"]
    assert to_come.result()["meta_info"]["weight_version"] == after["meta_info"]["weight_version"]


def num_requests(served: Served) -> int:
    if HAS_GET_LOAD:
        return int(get(served, "/get_load").json()[0]["num_reqs"])
    [loads] = get(served, "/v1/loads").json()["loads"]
    return int(loads["num_running_reqs"] + loads["num_waiting_reqs"])


def test_a_busy_server_answers_health_and_load_and_keeps_its_cache(pair: Pair) -> None:
    with scenarios.in_flight(pair, "busy", 43) as (body, to_come):
        assert call(pair.layered, "/flush_cache").status_code == 400
        assert num_requests(pair.layered) >= 1
        assert get(pair.layered, "/health_generate").status_code == 200
    assert generate(pair.layered, body)["meta_info"]["cached_tokens"] == len(body["input_ids"]) - 1
    pair.layered.server.flush_cache()
    assert generate(pair.layered, body)["meta_info"]["cached_tokens"] == 0
    assert to_come.result()["output_ids"] == generate(pair.stock, body)["output_ids"]


def test_profiler_writes_a_trace_of_layered_steps(pair: Pair, tmp_path: Path) -> None:
    order = {"output_dir": str(tmp_path), "num_steps": 4, "activities": ["CPU"]}
    with pair.beside():
        assert call(pair.layered, "/start_profile", order).status_code == 200
        pair.through_groups("/generate", PLAIN | {"rid": new_rid("profiled")})
        assert scenarios.trace_events(tmp_path)


def test_metrics(pair: Pair) -> None:
    already = len(events(pair.layered))
    (mine, counts), (theirs, expected) = (
        scenarios.counted_workload(served) for served in (pair.layered, pair.stock)
    )
    assert mine == theirs
    assert counts == expected
    assert really_layered(events(pair.layered)[already:])
    assert metric_names(pair.layered) >= metric_names(pair.stock)
    metrics = get(pair.layered, "/metrics").text
    assert re.search(r"^sglang:layered_prefill_active\{.*\} 1\.0$", metrics, re.MULTILINE)


@pytest.mark.parametrize("line", ["Prefill batch", "Decode batch"])
def test_log_lines(pair: Pair, line: str) -> None:
    mine, theirs = log_fields(pair.layered.log, line), log_fields(pair.stock.log, line)
    assert mine == theirs
    assert len(mine) > 4


def test_server_info(pair: Pair) -> None:
    mine, theirs = get(pair.layered, "/server_info").json(), get(pair.stock, "/server_info").json()
    assert (mine["prefill_mode"], mine["layered_group_tokens"]) == ("layered", GROUP_TOKENS)
    assert mine.keys() >= theirs.keys()
