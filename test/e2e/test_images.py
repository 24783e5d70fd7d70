"""A multimodal model on a real server: text and images in both modes, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from event_tail import EventTail
from tiny_models import tiny_model

from features_client import Neighbours, ask, assert_same, call, events
from image_bench import Seen, abort_in_encoder, differing, measure, table
from image_chats import chat, picture, pictures_chat
from servers import LAYERED, Served, serve
from workload import settings

# SGLang compiles the encoder's rotary embedding: half a minute on two cores.
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}
GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for both modes."""
    folder = tmp_path_factory.mktemp("images")
    steps = folder / "steps.jsonl"
    flags = (*LAYERED, "--layered-listeners", f"jsonl={steps}")
    with serve(folder, tiny_model("qwen3_vl_moe"), *flags, env=UNCOMPILED) as server:
        yield Served(server, steps)


WIDE, HIGH, LARGE = picture(1, 300, 120), picture(2, 70, 400), picture(3, 470, 470)
WORDS = "Prompts pass the layers in groups while others decode. " * 12
ASKED = {
    "text": ("/generate", {"text": WORDS, "sampling_params": GREEDY}),
    "chat": ("/v1/chat/completions", chat(WORDS)),
    "chat-image": ("/v1/chat/completions", chat("What is on it? ", WIDE, WORDS)),
    "chat-images": ("/v1/chat/completions", chat(WIDE, WORDS, LARGE, "and ", HIGH)),
    "generate-image": (
        "/generate",
        {"text": WORDS + PLACE + "Say it.", "image_data": [LARGE], "sampling_params": GREEDY},
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_answers_beside_streams_are_those_of_chunked_mode(served: Served, name: str) -> None:
    path, body = ASKED[name]
    served.server.flush_cache()
    already = len(events(served))
    with Neighbours(served):
        mine = ask(served, path, body)
    kinds = [event["kind"] for event in events(served)[already:] if event["event"] == "step_done"]
    assert kinds.count("layered") > 1
    assert "image" in name or "encoder" not in kinds
    served.server.flush_cache()
    with settings(served, layered_prefill=0):
        theirs = ask(served, path, body)
    assert_same(mine, theirs)


def test_an_image_passes_the_encoder_in_a_step_of_its_own(served: Served) -> None:
    already = len(events(served))
    with Neighbours(served):
        ask(served, "/v1/chat/completions", chat(picture(9, 200, 200), WORDS))
    heard = [event for event in events(served)[already:] if event["event"] == "step_done"]
    [encoder] = [index for index, event in enumerate(heard) if event["kind"] == "encoder"]
    assert heard[encoder]["num_decode_rows"] == 2
    assert heard[encoder + 1]["group"][0] == 0


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_what_is_refused_gets_a_400_that_says_so_and_the_server_lives(served: Served, kind: str) -> None:
    body = {"text": "Hello", f"{kind}_data": ["data"], "sampling_params": GREEDY}
    reply = call(served, "/generate", body)
    assert reply.status_code == 400
    assert "--prefill-mode layered does not serve them" in reply.text
    assert ask(served, "/generate", {"text": "Hello", "sampling_params": GREEDY})["output_ids"]


def test_the_limits_of_a_request_are_shown(served: Served) -> None:
    shown = httpx.get(f"{served.url}/server_info", trust_env=False, timeout=60).json()
    assert shown["limit_mm_data_per_request"] == {"video": 0, "audio": 0}


def test_the_bench_measures_streams_beside_a_chat_in_each_mode(served: Served) -> None:
    body, steps = pictures_chat(1), served.steps
    assert steps is not None
    layered = asyncio.run(measure(served.url, "layered", 1, body, EventTail(steps)))
    with settings(served, layered_prefill=0):
        stock = asyncio.run(measure(served.url, "stock", 1, body, None))
    assert {"encoder", "layered"} <= {kind for kind, _ in layered.steps}
    assert layered.answer
    assert differing([layered, stock]) == []
    assert [len(shown.rows) for shown in [table([layered, stock])]] == [2]


def test_a_chat_that_is_aborted_in_the_encoder_leaves_nothing(served: Served) -> None:
    assert served.steps is not None
    body = pictures_chat(2, num_pictures=12)
    seen = asyncio.run(abort_in_encoder(served.url, served.url, 2, body, EventTail(served.steps)))
    assert seen.encoder_steps >= 1
    assert seen.fault is None


def test_the_worst_gap_is_the_streams_longest_wait_until_the_answer_has_ended() -> None:
    early, late = [-9.0, -0.5, 0.5, 1.0, 1.5], [-1.0, 2.0, 2.5, 30.0]
    seen = Seen("layered", 1, ttft_s=1.8, end_s=2.2, answer="", arrivals_s=[early, late])
    assert seen.worst_gap_s == 3.0
