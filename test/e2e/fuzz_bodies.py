"""Request bodies for three endpoints: right ones, and right ones with a few fields bent.

What ends SGLang as released, or makes it generate to the end of the context, is left out: on `/generate` most
wrong types do; `docs/features.md` lists what was found.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Body = dict[str, Any]

WORDS = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["once upon a time", "\u202e\u0000\ufeff", "\U0001f469‍\U0001f52c" * 9]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | WORDS
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
IDS = st.lists(st.integers(3, 999), min_size=1, max_size=12)
LONG_IDS = st.builds(lambda ids, times: (ids * times)[:700], IDS, st.integers(1, 200))
PROMPTS = st.one_of(IDS, LONG_IDS, st.lists(IDS, min_size=1, max_size=3))


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = "bottom"
    for _ in range(levels):
        value = [value]
    return value


def either(*values: Any) -> st.SearchStrategy[Any]:
    """One of these values, or anything at all."""
    return st.sampled_from(values) | JUNK


def exactly(*values: Any) -> st.SearchStrategy[Any]:
    """One of these values: others end SGLang as released, or take it too long."""
    return st.sampled_from(values)


SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "temperature": either(0, 0.7, -1, 1e308, 1e-300),
    "top_k": exactly(1, 5, 0, -1, -5, 10**9),
    "top_p": either(0.5, 1, 0, -1, 2),
    "min_p": either(0, 0.5, 1, -1, 2),
    "n": exactly(1, 2, 3, 0, -1, "3", 1.5),
    "stop": exactly("a", "", ["a", "b"], [], ["x"] * 500, [1], {"a": 1}, 5),
    "stop_token_ids": exactly([5], [], [-1], ["a"], 5, [2**70], [[1]]),
    "stop_regex": exactly("a+", "", "("),
    "ignore_eos": exactly(True, False, "yes", 2),
    "max_new_tokens": exactly(0, 1, 5, -3, "5", 10**12, 2**70),
    "speed": JUNK,
}
GENERATE: dict[str, st.SearchStrategy[Any]] = {
    "input_ids": PROMPTS | exactly([], ["a"], "x", 5, [None], {}, None, [[5], 6], [5.5]),
    "text": WORDS | st.lists(WORDS, min_size=1, max_size=2) | exactly(5, {}, [5], None, deep(200)),
    "sampling_params": exactly(None, [], [{}], "x", 5),
    "return_logprob": either(True, False, "x"),
    "logprob_start_len": exactly(0, 1, -1, 100, "x", 2**70),
    "top_logprobs_num": exactly(0, 3, -1, "x", None),
    "token_ids_logprob": exactly([5], [10**6], [-1], ["a"], 5),
    "stream": either(True, False, "yes"),
    "rid": either("a", ["a"], 5, ""),
    "priority": either(5, -5),
    "routed_dp_rank": exactly(0, 3),
    "session_params": exactly({}, {"id": "gone"}, "x"),
    "lora_path": exactly("x", ["x"], 5),
    "nonsense": JUNK | exactly(deep(300)),
}
COMPLETIONS: dict[str, st.SearchStrategy[Any]] = {
    "model": either("default", "other"),
    "prompt": WORDS | PROMPTS | exactly([], "", ["a", 5], None, {}, [[]], ["a", "b"]),
    "max_tokens": exactly(0, 1, 5, -1, "4", 2.5, [], 10**12),
    "temperature": either(0, 2, -1, 5),
    "top_p": either(0.5, 0, 2),
    "n": exactly(1, 2, 0, -1, "x"),
    "echo": either(True, False),
    "logprobs": exactly(None, 0, 2, 5, -1, 100, "x", True),
    "stop": either("a", ["a", "b"], ""),
    "stream": either(True, False),
    "stream_options": either({"include_usage": True}, {}),
    "suffix": either("x"),
    "user": either("me"),
    "seed": either(1, -1),
    "nonsense": JUNK | exactly(deep(300)),
}
MESSAGE = {"role": "user", "content": "hello"}
CHAT: dict[str, st.SearchStrategy[Any]] = {
    "model": either("default", "other"),
    "messages": either(
        [],
        [{}],
        [MESSAGE] * 20,
        [{"role": "alien", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "system", "content": ""}, MESSAGE],
    )
    | st.lists(st.fixed_dictionaries({"role": exactly("user", "system"), "content": WORDS}), max_size=3),
    "max_tokens": exactly(1, 5, 0, -1, [], {}),
    "temperature": either(0, 2, -1),
    "n": exactly(1, 2, 0, "x"),
    "logprobs": either(True, False),
    "top_logprobs": exactly(None, 0, 3, "x"),
    "stop": either("a", ["a", "b"]),
    "stream": either(True, False),
    "tools": exactly(None, [], "x", 5),
    "tool_choice": exactly("auto", "none", "x", None),
    "continue_final_message": either(True, False),
    "nonsense": JUNK | exactly(deep(300)),
}
BASES: dict[str, Body] = {
    "/generate": {"input_ids": [5, 6, 7], "sampling_params": {"temperature": 0, "max_new_tokens": 4}},
    "/v1/completions": {"model": "default", "prompt": "once upon", "max_tokens": 4, "temperature": 0},
    "/v1/chat/completions": {"model": "default", "messages": [MESSAGE], "max_tokens": 4, "temperature": 0},
}
FIELDS = {"/generate": GENERATE, "/v1/completions": COMPLETIONS, "/v1/chat/completions": CHAT}
KEPT = ("max_tokens",)  # without it a chat goes on to the end of the context


@st.composite
def made_up_requests(draw: st.DrawFn) -> tuple[str, Body]:
    """A path and a body in which up to four fields are bent, missing or new."""
    path = draw(st.sampled_from(sorted(BASES)))
    body = dict(BASES[path])
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS[path])), max_size=3, unique=True)):
        body[name] = draw(FIELDS[path][name])
    if draw(st.integers(0, 9)) == 0:
        body.pop(draw(st.sampled_from([name for name in BASES[path] if name not in KEPT])))
    if path == "/generate" and "sampling_params" in body and isinstance(body["sampling_params"], dict):
        params = dict(body["sampling_params"])
        for name in draw(st.lists(st.sampled_from(sorted(SAMPLING)), max_size=2, unique=True)):
            params[name] = draw(SAMPLING[name])
        body["sampling_params"] = params
    return path, body
