"""Reads what servers write: server-sent events, Prometheus text, log lines."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import httpx

from features_client import get
from features_servers import Served

# What the same requests must count the same, whatever the steps they ran in.
COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "cached_tokens_total", "num_requests_total")
COUNTERS += ("realtime_tokens_total", "prompt_tokens_histogram_bucket", "generation_tokens_histogram_bucket")
COUNTERS += ("uncached_prompt_tokens_histogram_bucket", "time_to_first_token_seconds_count")
COUNTERS += ("inter_token_latency_seconds_count", "e2e_request_latency_seconds_count")
COUNTERS += ("queue_time_seconds_count",)
SAMPLE = re.compile(r"^sglang:(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def metrics_text(served: Served) -> str:
    return get(served, "/metrics").text


def metric_names(served: Served) -> set[str]:
    return {name for name, _, _ in SAMPLE.findall(metrics_text(served))}


def metric_values(served: Served) -> dict[str, float]:
    """COUNTERS with their labels but the process's id, summed over processes."""
    values: dict[str, float] = {}
    for name, labels, value in SAMPLE.findall(metrics_text(served)):
        if name in COUNTERS:
            label_text = ",".join(part for part in labels.split(",") if not part.startswith("pid="))
            key = f"{name}{{{label_text}}}"
            values[key] = values.get(key, 0) + float(value)
    return values


def log_fields(log: str, line: str) -> list[str]:
    """The names of the figures in the first log line of a kind."""
    text = re.search(rf"\] {line}, (.*)", log)
    assert text, f"no {line!r} in the log"
    return [part.rpartition(": ")[0] for part in text.group(1).split(", ")]


def stream_events(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for a stream; it must be well-formed server-sent events that end with [DONE]."""
    with httpx.stream("POST", served.url + path, json=body, timeout=120, trust_env=False) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(reply.iter_text()).split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks[:-2])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def joined_text(answers: list[dict[str, Any]]) -> str:
    """The text of a whole answer, or of its chunks: /generate's chunks are cumulative, others are not."""
    if "text" in answers[0]:
        texts: list[str] = [answer["text"] for answer in answers]
        assert all(late.startswith(early.rstrip("\ufffd")) for early, late in itertools.pairwise(texts))
        return texts[-1]
    return "".join(_piece(choice) for answer in answers for choice in answer["choices"])


def _piece(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return (choice.get("delta") or choice.get("message") or {}).get("content") or ""
