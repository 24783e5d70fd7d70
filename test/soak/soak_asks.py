"""One request of a soak and what came of it: data, and how a stream's events become it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from soak_plan import Abort


def generate_body(prompt: tuple[int, ...], num_outputs: int) -> dict[str, Any]:
    """Greedy, and never ended by the model itself."""
    sampling = {"temperature": 0, "max_new_tokens": num_outputs, "ignore_eos": True}
    return {"input_ids": list(prompt), "sampling_params": sampling}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `prompt` is all that the answer follows: of a turn also what was said before it.

    Ids of one soak are of one length: SGLang aborts every request whose id starts with the one given.
    """

    rid: str
    prompt: tuple[int, ...]
    num_outputs: int
    abort: Abort | None = None
    session: str | None = None
    num_said_before: int = 0  # tokens of `prompt` that the session has already

    def body(self) -> dict[str, Any]:
        """The request as SGLang's /generate takes it, streamed."""
        body = generate_body(self.prompt[self.num_said_before :], self.num_outputs)
        if self.session is not None:
            body["session_params"] = {"id": self.session}
        return body | {"stream": True, "rid": self.rid}


@dataclass(slots=True)
class Outcome:
    """What a client got. `ending` is SGLang's finish type, `hung up`, `none`, or an error's text.

    Times are `time.monotonic()`. `aborted_s` is when the server had certainly read the request's own abort.
    """

    ask: Ask
    tokens: list[int] = field(default_factory=list)
    ending: str = "none"
    asked_s: float = 0.0
    ended_s: float = math.inf
    aborted_s: float | None = None
    is_abort_sent: bool = False
    num_late_events: int = 0

    def hear(self, event: dict[str, Any]) -> None:
        """Take in one event of the stream; whatever comes after the end is late."""
        if self.ending != "none":
            self.num_late_events += 1
            return
        if "error" in event:
            is_abort = "abort" in event["error"]["message"].lower()
            self.ending = "abort" if is_abort else f"error {event['error']}"
            return
        if len(event["output_ids"]) > len(self.tokens):  # an abort's last event holds one token only
            self.tokens = event["output_ids"]
        reason = event["meta_info"]["finish_reason"]
        if reason is not None:
            self.ending = reason["type"]


@dataclass(frozen=True, slots=True)
class AbortAll:
    """One abort of everything: sent at `sent_s`, and certainly read by the server at `read_s`."""

    sent_s: float
    read_s: float


def abort_read_s(outcome: Outcome, abort_alls: list[AbortAll]) -> float | None:
    """When the server had read every abort that may have ended this request; None if there was none."""
    hits = [
        each.read_s
        for each in abort_alls
        if outcome.asked_s <= each.read_s and each.sent_s <= outcome.ended_s
    ]
    if outcome.is_abort_sent:
        hits.append(math.inf if outcome.aborted_s is None else outcome.aborted_s)
    return max(hits, default=None)
