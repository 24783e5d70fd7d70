"""One long prompt among running streams, point by point, on one server after another. Raw times; no metric.

A point's times are in seconds since its prompt was sent; a layered server also tells, through its JSONL
listener, how long each step took on the device.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu.budget import Budget
from sglang_layered_lab.gpu.client import Crowd, TimedStream, change_settings, draw_prompt, request_body
from sglang_layered_lab.gpu.models import check_routers, environment_of, model_of, topics
from sglang_layered_lab.gpu.profiles import Arm, Profile
from sglang_layered_lab.gpu.records import StageRecord
from sglang_layered_lab.models.router_topics import TokenRange
from sglang_layered_lab.serving import ServerProcess

SETTLE_S = 0.3  # the streams' own prompts are over and decode goes on alone
EVENTS_WAIT_S = 5.0
LEFT_OUT_LETTERS = 500
POINT_S = 10.0  # what a point may take, at least: not begun with less


@dataclass(frozen=True, slots=True)
class Point:
    """What is asked of a server; `num_groups` None leaves the server's setting alone."""

    decode_rows: int
    prompt_tokens: int
    num_groups: int | None = None

    def key(self, arm: Arm) -> str:
        """Unique in a record."""
        groups = "" if self.num_groups is None else f"/g{self.num_groups}"
        return f"{arm.name}/b{self.decode_rows}/p{self.prompt_tokens}{groups}"


def points_of(arm: Arm, rows: Sequence[int], prompts: Sequence[int], groups: Sequence[int]) -> list[Point]:
    """Every point of an arm. Beside no decode a prompt runs whole in layered mode: one point, no groups."""
    points = []
    for num_rows in rows:
        for tokens in prompts:
            choices: Sequence[int | None] = groups if arm.is_layered and groups and num_rows else [None]
            points += [Point(num_rows, tokens, num_groups) for num_groups in choices]
    return points


class StepLog:
    """Reads the steps that a layered server appends to its JSONL file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._steps: list[dict[str, Any]] = []

    def skip(self) -> None:
        """Forget all steps so far."""
        self._read()
        self._steps.clear()

    def around(self, request_id: str) -> dict[str, Any]:
        """Steps of one prompt, waiting for the last, and durations of the decode steps before it."""
        end_s = time.monotonic() + EVENTS_WAIT_S
        while True:
            self._read()
            mine = [step for step in self._steps if request_id in step["prompt"]]
            if mine and mine[-1]["group_index"] + 1 == mine[-1]["num_groups"]:
                break
            if time.monotonic() > end_s:
                raise GpuHostError(f"{self._path} tells of no last step of prompt {request_id}")
            time.sleep(0.02)
        before = self._steps[: self._steps.index(mine[0])]  # later ones also decode this prompt's request
        others = [step["duration_s"] for step in before if step["kind"] == "decode"]
        return {
            "steps_s": [step["duration_s"] for step in mine],
            "num_groups": mine[-1]["num_groups"],
            "decode_rows": [step["num_decode_rows"] for step in mine],
            "decode_steps_s": others[-50:],
        }

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._offset)
            lines = file.read()
        whole = lines[: lines.rfind("\n") + 1]
        self._offset += len(whole.encode())
        events = (json.loads(line) for line in whole.splitlines())
        self._steps += [event for event in events if event["event"] == "step_done"]


@dataclass(slots=True)
class ArmServer:
    """A running server of one arm and what is needed to ask it."""

    arm: Arm
    profile: Profile
    base_url: str
    steps: StepLog | None
    source: random.Random
    topics: tuple[TokenRange, ...] = ()

    def crowd(self, num_rows: int, timeout_s: float) -> Crowd:
        """Streams that decode; entering it waits for them."""
        prompts = [self.draw(self.profile.context_tokens) for _ in range(num_rows)]
        bodies = [self.body(prompt, self.profile.max_new_tokens) for prompt in prompts]
        return Crowd(self.base_url, bodies, timeout_s)

    def draw(self, num_tokens: int) -> list[int]:
        """A prompt that no cache knows."""
        return draw_prompt(self.source, num_tokens, self.profile.vocab_size, self.topics)

    def body(self, ids: list[int], max_new_tokens: int, **fields: Any) -> dict[str, Any]:
        """A request; it is sampled where greedy dummy weights would go round in circles."""
        return request_body(ids, max_new_tokens, 1.0 if self.topics else 0.0, **fields)

    def measure(
        self, point: Point, crowd: Crowd, timeout_s: float, before: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Send the prompt once among the streams; `before` is called right before."""
        name = f"prompt-{self.source.getrandbits(48):x}"
        if self.steps:
            self.steps.skip()
        time.sleep(SETTLE_S)
        body = self.body(self.draw(point.prompt_tokens), 2, rid=name)
        prompt = TimedStream(self.base_url, body, timeout_s)
        if before is not None:
            before()
        began_s = time.perf_counter()
        prompt.start()
        prompt.join(timeout_s)
        time.sleep(SETTLE_S / 2)
        if prompt.failure or len(prompt.arrivals_s) < 2:
            raise GpuHostError(f"the prompt got {len(prompt.arrivals_s)} tokens: {prompt.failure}")
        crowd.check()
        seen: dict[str, Any] = {"prompt_s": _since(prompt.sent_s, prompt.arrivals_s), "streams_s": []}
        seen["generated_tokens"] = max((len(stream.arrivals_s) for stream in crowd.streams), default=0)
        for stream in crowd.streams:
            near = [time_s for time_s in list(stream.arrivals_s) if time_s > began_s - SETTLE_S]
            seen["streams_s"].append(_since(prompt.sent_s, near))
        return seen | (self.steps.around(name) if self.steps else {})


def _since(zero_s: float, times_s: list[float]) -> list[float]:
    return [round(time_s - zero_s, 5) for time_s in times_s]


@contextmanager
def serving(
    profile: Profile, arm: Arm, folder: Path, ready_timeout_s: float
) -> Iterator[tuple[ServerProcess, ArmServer]]:
    """A server of this arm; log and steps go into the folder."""
    model, log, events = model_of(profile, folder), folder / f"{arm.name}.log", folder / f"{arm.name}.jsonl"
    events.unlink(missing_ok=True)
    listener = ("--layered-listeners", f"jsonl={events}") if arm.is_layered else ()
    flags, env = (*profile.common_flags, *arm.flags, *listener), environment_of(model)
    with ServerProcess(model, flags, log_path=log, env=env, ready_timeout_s=ready_timeout_s) as server:
        check_routers(model, log)
        steps = StepLog(events) if arm.is_layered else None
        yield server, ArmServer(arm, profile, server.base_url, steps, random.Random(arm.name), topics(model))


def run_arms(
    record: StageRecord,
    profile: Profile,
    arms: Sequence[Arm],
    points: dict[str, list[Point]],
    folder: Path,
    budget: Budget,
) -> None:
    """Measure all points that the record lacks; one server an arm."""
    failures = []
    for arm in arms:
        todo = [point for point in points[arm.name] if not record.has(point.key(arm))]
        if not todo or record.has(arm.name):
            continue
        budget.need(min(profile.start_s, budget.total_s) / 2)
        try:
            _run_arm(record, profile, arm, todo, folder, budget)
        except Exception as error:  # the next arm may work; the stage fails at its end
            if arm.is_optional:
                record.add({"key": arm.name, "arm": arm.name, "left_out": str(error)[-LEFT_OUT_LETTERS:]})
            else:
                failures.append(f"{arm.name}: {error}")
    if failures:
        raise GpuHostError("\n".join(failures))


def _run_arm(
    record: StageRecord, profile: Profile, arm: Arm, todo: list[Point], folder: Path, budget: Budget
) -> None:
    started_s = time.monotonic()
    with serving(profile, arm, folder, budget.left_s) as (server, running):
        start_s = time.monotonic() - started_s
        for num_rows in dict.fromkeys(point.decode_rows for point in todo):
            budget.need(POINT_S)
            with running.crowd(num_rows, budget.left_s) as crowd:
                for point in (each for each in todo if each.decode_rows == num_rows):
                    _run_point(record, running, point, crowd, start_s, budget)
            server.flush_cache()


def _run_point(
    record: StageRecord, running: ArmServer, point: Point, crowd: Crowd, start_s: float, budget: Budget
) -> None:
    budget.need(POINT_S)
    if point.num_groups is not None:
        change_settings(running.base_url, layered_num_groups=point.num_groups)
    running.measure(point, crowd, budget.left_s)  # warms up kernels and caches of this shape
    measured = [running.measure(point, crowd, budget.left_s) for _ in range(running.profile.num_repetitions)]
    record.add(
        {
            "key": point.key(running.arm),
            "arm": running.arm.name,
            "is_layered": running.arm.is_layered,
            "decode_rows": point.decode_rows,
            "prompt_tokens": point.prompt_tokens,
            "num_groups": point.num_groups,
            "context_tokens": running.profile.context_tokens,
            "start_s": round(start_s, 1),
            "repetitions": measured,
        }
    )
