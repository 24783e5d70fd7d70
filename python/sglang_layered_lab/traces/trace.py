"""Steps of a run, read back from the file of the `jsonl` listener."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sglang_layered.core.pacing import Decision, ModelSizes, StepLoad
from sglang_layered.errors import BenchError


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One `step_done`. Times in seconds of one clock; `group` is None for a step through all layers.

    `decode` maps requests that got a token to their number of tokens, `prompt` each prompt's request to its
    rows; it has its first token if `ends_prompt`.
    """

    step: int
    time_s: float
    kind: str
    start_s: float
    duration_s: float
    decode: Mapping[str, int]
    prompt: Mapping[str, int]
    arrived_s: Mapping[str, float]
    load: StepLoad
    group: tuple[int, int] | None = None
    group_index: int = 0
    num_groups: int = 1
    decision: Decision | None = None

    @property
    def ends_prompt(self) -> bool:
        """True in a cohort's last step, and in a prompt's step through all layers."""
        return bool(self.prompt) and self.group_index == self.num_groups - 1

    @property
    def begins_prompt(self) -> bool:
        """True in a cohort's first step, and in a prompt's step through all layers."""
        return bool(self.prompt) and self.group_index == 0


@dataclass(frozen=True, slots=True)
class Trace:
    """The steps of one server, in order, and what it served."""

    steps: tuple[TracedStep, ...]
    sizes: ModelSizes
    policy: str
    cohort_tokens: int | None


def read_trace(path: Path) -> Trace:
    """The last server's part of a trace; it may be compressed, as `.gz`.

    Raises:
        BenchError: it is no trace, or has no start or no steps.
    """
    steps: list[dict[str, Any]] = []
    started: dict[str, Any] | None = None
    try:
        packed = path.read_bytes()
        text = gzip.decompress(packed) if path.suffix == ".gz" else packed
        for line in text.decode().splitlines():
            values = json.loads(line)
            if values["event"] == "serving_started":
                started, steps = values, []
            if values["event"] == "step_done" and values.get("load") is not None:
                steps.append(values)
        if started is None or not steps:
            raise BenchError(
                f"{path}: no start of a server or no steps in it; serve in layered mode with"
                f" --layered-listeners jsonl={path} and send load"
            )
        return TypeAdapter(Trace).validate_python(started | {"steps": steps})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"{path}: no trace of --layered-listeners jsonl=PATH ({error!r})") from error
