"""Other benchmark tools: what they read, how they are called, how a call is run. Their figures: `reading`.

All are given the same requests, as text, in the same order.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench_checks.crosscheck_load import SEED
from bench_checks.crosscheck_reading import (
    Itl,
    Reading,
    bench_serving_reading,
    guidellm_reading,
)

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.client_data import PlannedRequest

GUIDELLM = Path(".tools") / "guidellm" / "bin" / "guidellm"
LOG_TAIL_LINES = 15

LEAD_S = 1.0  # GuideLLM's replay begins while its worker still starts, so its first requests would be late

# No look at a hub; a proxy is not for loopback.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a tool: the requests to send, when, where, and files of its own.

    With `num_clients` it is a closed loop of so many; else requests go at their `due_s`, which come from
    `open_times_s` at `rate_per_s`.
    """

    requests: Sequence[PlannedRequest]
    num_clients: int | None
    rate_per_s: float
    url: str
    tokenizer: Path
    folder: Path  # absolute; the tool runs in it
    timeout_s: float

    @property
    def data(self) -> Path:
        """File with the requests."""
        return self.folder / "requests.jsonl"

    @property
    def output(self) -> Path:
        """File that the tool writes."""
        return self.folder / "output.json"

    @property
    def due_s(self) -> list[float]:
        """When the requests are due in an open loop."""
        return [request.due_s for request in self.requests]

    @property
    def output_lengths(self) -> list[int]:
        """Output tokens of the requests, in order."""
        return [request.max_output_tokens for request in self.requests]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: the rows of its data set, its command, what is read from its output, its ITL."""

    name: str
    itl: Itl
    rows: Callable[[Call], list[dict[str, Any]]]
    command: Callable[[Call], list[str]]
    read: Callable[[str, Call], Reading]

    def run(self, call: Call) -> Reading:
        """Write the data set, run the tool, read its output.

        Raises:
            BenchError: it failed or took too long, or its output is not understood.
        """
        call.folder.mkdir(parents=True, exist_ok=True)
        call.output.unlink(missing_ok=True)
        call.data.write_text("".join(json.dumps(row) + "\n" for row in self.rows(call)))
        log = call.folder / "log"
        status = _status_of(self.command(call), call, log)
        if status != 0 or not call.output.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
            how = "took too long" if status is None else f"ended with status {status}"
            raise BenchError(f"{self.name} {how}; its log ends with\n{tail}")
        return self.read(call.output.read_text(), call)


def bench_serving_rows(call: Call) -> list[dict[str, Any]]:
    """Rows of its data set `custom`, which it shuffles: placed so that they come out in the planned order.

    An answer stands in each row only to say how many tokens to ask for: so many words of the prompt.
    """
    order = list(range(len(call.requests)))
    random.Random(SEED).shuffle(order)
    rows: list[dict[str, Any]] = [{} for _ in order]
    for request, place in zip(call.requests, order, strict=True):
        prompt = str(request.prompt)
        answer = " ".join([prompt.split()[0]] * request.max_output_tokens)
        rows[place] = {"conversations": [{"value": prompt}, {"value": answer}]}
    return rows


def bench_serving_command(call: Call) -> list[str]:
    """`python -m sglang.bench_serving` on /generate."""
    load = {"--request-rate": repr(call.rate_per_s)}
    if call.num_clients is not None:
        load = {"--max-concurrency": str(call.num_clients)}
    options = load | {
        "--backend": "sglang",
        "--base-url": call.url,
        "--dataset-name": "custom",
        "--dataset-path": str(call.data),
        "--num-prompts": str(len(call.requests)),
        "--tokenizer": str(call.tokenizer),
        "--seed": str(SEED),
        "--warmup-requests": "1",
        "--output-file": str(call.output),
    }
    command = [sys.executable, "-m", "sglang.bench_serving", "--output-details", "--disable-tqdm"]
    return command + [word for pair in options.items() for word in pair]


def guidellm_rows(call: Call) -> list[dict[str, Any]]:
    """Rows of a file of prompts; with a number of output tokens GuideLLM asks for them to the last."""
    return [
        {
            "prompt": str(request.prompt),
            "output_tokens_count": request.max_output_tokens,
            "relative_timestamp": LEAD_S + request.due_s,  # its profile `concurrent` does not look at it
        }
        for request in call.requests
    ]


def guidellm_command(call: Call) -> list[str]:
    """`guidellm run` on /v1/completions."""
    profile = "kind=replay" if call.num_clients is None else f"kind=concurrent,streams={call.num_clients}"
    options = {
        "--backend": f"kind=openai_http,target={call.url},request_format=/v1/completions",
        "--profile": profile,
        "--constraint": f"kind=max_requests,count={len(call.requests)}",
        "--data": f"kind=json_file,path={call.data}",
        "--tokenizer": f"kind=huggingface_auto,model={call.tokenizer}",
        "--output": f"kind=json,path={call.output}",
    }
    command = [str(GUIDELLM.absolute()), "run", "--disable-console-interactive"]
    return command + [word for pair in options.items() for word in pair]


TOOLS = (
    Tool(
        "sglang.bench_serving",
        "all gaps",
        bench_serving_rows,
        bench_serving_command,
        lambda text, call: bench_serving_reading(text, call.output_lengths),
    ),
    Tool(
        "GuideLLM",
        "request means",
        guidellm_rows,
        guidellm_command,
        lambda text, call: guidellm_reading(text, None if call.num_clients else call.due_s),
    ),
)


def environment_of(call: Call) -> dict[str, str]:
    """The tool's environment.

    GuideLLM gets one client process, as ours and bench_serving are one. In its replay it gets two, of which
    it uses one: with one it loses a request (seen in 0.8.1).
    """
    workers = "2" if call.num_clients is None else "1"
    return dict(os.environ) | dict(ENVIRONMENT) | {"GUIDELLM__MAX_WORKER_PROCESSES": workers}


def _status_of(command: Sequence[str], call: Call, log: Path) -> int | None:
    """Exit status; None if it took too long. Nothing of it is left running."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=call.folder,
            env=environment_of(call),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        return process.wait(timeout=call.timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
