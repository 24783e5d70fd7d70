"""The request features that are compared with the release: what is asked, and what it must do to the answer.

Plain data, importable without SGLang: docs/features.md is checked against these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workload import prompt

NUM_OUTPUTS = 24
PROMPT = prompt(400, 11)
GREEDY = {"temperature": 0, "max_new_tokens": NUM_OUTPUTS, "ignore_eos": True}
EOS = 2
TEXT = "Tell me about ships, and then about the weather at sea. " * 20
MESSAGES = [{"role": "user", "content": TEXT}]


@dataclass(frozen=True)
class Feature:
    """Options of a /generate request; `tokens` says if its output is the greedy one, or surely another.

    `neighbours` are options of the requests that decode beside it.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tokens: Literal["greedy", "other"] = "greedy"
    needs_compiler: bool = False
    neighbours: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The request, on the prompt that all share."""
        given = {} if "text" in self.options else {"input_ids": list(PROMPT)}
        return {**given, **self.options, "sampling_params": {**GREEDY, **self.sampling}}


def logprobs(**options: Any) -> Feature:
    return Feature({"return_logprob": True, **options})


def penalty(**sampling: Any) -> Feature:
    return Feature(sampling=sampling, tokens="other", needs_compiler=True)


STRUCTURAL_TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}],
    "triggers": ["<f"],
}

GENERATE = {
    "plain": Feature(),
    "text": Feature({"text": TEXT}, tokens="other"),
    "input-logprobs": logprobs(logprob_start_len=0),
    "input-logprobs-from-the-middle": logprobs(logprob_start_len=200, top_logprobs_num=3),
    "output-logprobs": logprobs(top_logprobs_num=5),
    # Beside a request without token_ids_logprob the release's scheduler ends with an AttributeError.
    "token-ids-logprob": Feature(
        {"return_logprob": True, "logprob_start_len": 0, "token_ids_logprob": [5, 17, 400]},
        neighbours={"return_logprob": True, "token_ids_logprob": [9]},
    ),
    "logprobs-with-text": logprobs(logprob_start_len=390, return_text_in_logprobs=True),
    "flat-top-logprobs": logprobs(logprob_start_len=0, top_logprobs_num=2, return_flat_raw_top_logprobs=True),
    "hidden-states": Feature({"return_hidden_states": True}),
    "hidden-states-last": Feature({"return_hidden_states": "last"}),
    "prompt-token-ids": Feature({"return_prompt_token_ids": True}),
    "scoring": Feature(
        {"return_logprob": True, "logprob_start_len": 0}, {"max_new_tokens": 0}, tokens="other"
    ),
    "one-token": Feature(sampling={"max_new_tokens": 1}, tokens="other"),
    "frequency-penalty": penalty(frequency_penalty=1.5),
    "presence-penalty": penalty(presence_penalty=1.5),
    "repetition-penalty": penalty(repetition_penalty=1.6),
    "min-new-tokens": Feature(
        sampling={"min_new_tokens": 9, "ignore_eos": False, "logit_bias": {str(EOS): 60.0}},
        tokens="other",
        needs_compiler=True,
    ),
    "logit-bias": Feature(sampling={"logit_bias": {"7": 4.0, "300": 4.0}}, tokens="other"),
    "min-p": Feature(sampling={"temperature": 0.8, "min_p": 1.0}),
    "top-k-one": Feature(sampling={"temperature": 0.8, "top_k": 1}),
    "top-p-tiny": Feature(sampling={"temperature": 0.8, "top_p": 1e-6}),
    "sampling-mask": Feature(
        {"return_sampling_mask": True, "return_logprob": True}, {"temperature": 0.8, "top_k": 1}
    ),
    "structural-tag": Feature(
        sampling={"structural_tag": json.dumps(STRUCTURAL_TAG), "ignore_eos": False}, tokens="other"
    ),
}


def some_letters(plain: Mapping[str, Any]) -> str:
    """Three letters from the midst of an answer."""
    letters: list[str] = re.findall("[a-z]{3}", plain["text"])
    return letters[3]


# Sampling parameters that end the plain answer early.
STOPS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "string": lambda plain: {"stop": ["never", some_letters(plain)]},
    "string-untrimmed": lambda plain: {"stop": some_letters(plain), "no_stop_trim": True},
    "token-id": lambda plain: {"stop_token_ids": [plain["output_ids"][NUM_OUTPUTS // 2]]},
    "regex": lambda plain: {"stop_regex": f"[{some_letters(plain)}]{{3}}"},
}

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}
EBNF = 'root ::= "yes " [a-z] [a-z] | "no " [0-9]'

# Sampling parameters, and a pattern that the whole answer must match.
STRUCTURED = {
    "json-schema": ({"json_schema": json.dumps(SCHEMA)}, r'\s*\{\s*"age"\s*:\s*[0-9]{2}\s*\}\s*'),
    "regex": ({"regex": "[0-9]{5}-[a-c]{3}"}, "[0-9]{5}-[a-c]{3}"),
    "ebnf": ({"ebnf": EBNF}, "yes [a-z][a-z]|no [0-9]"),
}

SHORT = {"model": "default", "max_tokens": 20, "temperature": 0}
COMPLETION = {**SHORT, "prompt": TEXT}
CHAT = {**SHORT, "messages": MESSAGES}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "age", "schema": SCHEMA}}

# Path and body of requests through the other HTTP interfaces.
HTTP: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", COMPLETION),
    "completions-echo": ("/v1/completions", {**COMPLETION, "echo": True, "logprobs": 2}),
    "completions-one-token": ("/v1/completions", {**COMPLETION, "max_tokens": 1, "logprobs": 3}),
    "completions-no-token": ("/v1/completions", {**COMPLETION, "max_tokens": 0, "echo": True}),
    "completions-n-2": ("/v1/completions", {**COMPLETION, "n": 2}),
    "completions-prompt-list": ("/v1/completions", {**COMPLETION, "prompt": [TEXT, "And " + TEXT]}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat-n-2": ("/v1/chat/completions", {**CHAT, "n": 2}),
    "chat-logprobs": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3}),
    "chat-response-format": ("/v1/chat/completions", {**CHAT, "response_format": RESPONSE_FORMAT}),
    "chat-tools": ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}),
    "responses": (
        "/v1/responses",
        {"model": "default", "input": TEXT, "max_output_tokens": 20, "temperature": 0},
    ),
    "messages": ("/v1/messages", CHAT),
    "ollama": (
        "/api/generate",
        {"model": "m", "prompt": TEXT, "stream": False, "options": {"num_predict": 20, "temperature": 0}},
    ),
    "score": (
        "/v1/score",
        {"query": list(PROMPT), "items": [[5, 6], [7, 8, 9]], "label_token_ids": [4, 5, 6]},
    ),
    "score-embed-overrides": (
        "/v1/score",
        {
            "query": [900, *PROMPT],
            "items": [[5, 6], [7, 8, 9]],
            "label_token_ids": [4, 5, 6],
            "embed_override_token_id": 900,
            "query_embed_overrides": [[0.1] * 128] * (1 + PROMPT.count(900)),
        },
    ),
}

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("/generate", {"input_ids": list(PROMPT), "sampling_params": GREEDY}),
    "completions": ("/v1/completions", COMPLETION),
    "chat": ("/v1/chat/completions", CHAT),
}
LISTED: dict[str, Any] = {
    "input_ids": [list(prompt(length, length)) for length in (300, 450, 20)],
    "sampling_params": [{**GREEDY, "max_new_tokens": count} for count in (5, 9, 13)],
    "return_logprob": [True, False, False],
}
PAUSES = ("abort", "retract", "in_place")
