"""What the client is given and what it gives back. Pure; JSON out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.clock import RunTimes
from sglang_layered_lab.bench.trace import RequestTrace


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send: greedy, and to its last token. `prompt` is token ids, or text.

    Open loop: `due_s` is when to send it, seconds since the run's zero. Closed loop: not before that.
    `sampling` is added to SGLang's sampling parameters.
    """

    request_id: str
    due_s: float
    prompt: Sequence[int] | str
    max_output_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """What is posted."""
        prompt = {"text": self.prompt} if isinstance(self.prompt, str) else {"input_ids": list(self.prompt)}
        sampling = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": self.max_output_tokens}
        asked = {"rid": self.request_id, "stream": True, "sampling_params": sampling | dict(self.sampling)}
        return orjson.dumps(prompt | asked)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    now_s: float
    num_requests: int  # that the run will send
    num_sent: int
    num_open: int
    num_done: int
    num_failed: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What the client itself took. Lateness is sent - due; lag is that of `LoopLag`; None without samples.

    `core_share` is CPU time over wall time, of the whole process: near 1 it was too slow and its times are
    not to be trusted.
    """

    cpu_s: float
    core_share: float
    lateness_p99_s: float | None
    lateness_max_s: float | None
    lag_p99_s: float | None
    lag_max_s: float | None
    max_open_streams: int

    def to_json(self) -> dict[str, Any]:
        """JSON values; times to a microsecond."""
        return {key: value if value is None else round(value, 6) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class ClientResult:
    """Traces in the order of the requests, one each whatever happened; the client's report; the moments.

    Traces of the background are of streams that were broken off at the end, with what came until then.
    """

    traces: tuple[RequestTrace, ...]
    report: ClientReport
    times: RunTimes
    background: tuple[RequestTrace, ...] = ()


def check_requests(requests: Sequence[PlannedRequest]) -> None:
    """Refuse what cannot be sent.

    Raises:
        BenchError: ids repeat, or a field of a request is empty or below its least value.
    """
    if len({request.request_id for request in requests}) != len(requests):
        raise BenchError("request_id: two requests have the same; give each its own")
    for request in requests:
        where = f"request {request.request_id}"
        if not request.prompt:
            raise BenchError(f"{where}: its prompt is empty; give token ids or text")
        if request.max_output_tokens < 1:
            raise BenchError(f"{where}: max_output_tokens is {request.max_output_tokens}; give 1 or more")
        if request.due_s < 0:
            raise BenchError(f"{where}: due_s is {request.due_s:g}; give 0 or more")
