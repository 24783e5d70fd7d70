"""Runs one soak from start to verdict, prints its table and writes its record."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from ties import TiedModel
from tiny_models import tiny_model, use_the_cpu

from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine
from soak_checks import MemoryVerdict, all_violations, memory_verdict, read_log, too_gentle
from soak_client import SoakClient
from soak_desk import Played
from soak_events import late_steps, read_events
from soak_plan import SoakPlan, SoakSpec, make_plan
from soak_replay import ask_again, longest_outputs, replay
from soak_servers import (
    EVENTS,
    OVERCOMMIT_ENV,
    layered_flags,
    layered_server,
    release_site,
    released_server,
    scheduler_process,
)


@dataclass(frozen=True, slots=True)
class SoakRecord:
    """Everything a soak leaves behind; `violations` is empty when it holds."""

    spec: SoakSpec
    counts: dict[str, int]
    played: Played
    memory: MemoryVerdict
    replay_s: float
    violations: list[str]

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        document: dict[str, Any] = {
            "spec": asdict(self.spec),
            "server": {"flags": layered_flags(self.spec), "env": OVERCOMMIT_ENV},
            "versions": installed_versions(),
            "commit": current_commit(),
            "machine": this_machine(),
            "duration_s": round(self.played.duration_s, 1),
            "replay_s": round(self.replay_s, 1),
            "counts": self.counts,
            "memory": asdict(self.memory),
            "memory_samples": {
                "units": "[seconds since the start, requests ended, resident bytes of the scheduler]",
                "rows": [
                    [round(sample.time_s, 1), sample.requests, sample.rss_bytes]
                    for sample in self.played.memory
                ],
            },
            "at_trouble": self.played.at_trouble,
            "violations": self.violations,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document) + "\n")


def run_soak(
    spec: SoakSpec, folder: Path, console: Console, scenes: Sequence[str] | None = None
) -> SoakRecord:
    """Serve, disturb, replay on SGLang as released, compare; logs and events go to `folder`."""
    use_the_cpu()
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(spec)
    played = _play(plan, folder, console, scenes)
    log = read_log(folder / "layered.log")
    late = late_steps(played.outcomes, played.abort_alls, read_events(folder / EVENTS))
    memory, counts = memory_verdict(played.memory), _counts(played, log[0])
    if played.trouble:  # some answers are missing: nothing to compare
        return SoakRecord(spec, counts, played, memory, 0.0, [*played.trouble, *late, *log[1]])
    console.print("Replaying each prompt alone on SGLang as released")
    start_s, wanted = time.monotonic(), longest_outputs(played.outcomes)
    with released_server(release_site(folder), folder) as server:
        expected = replay(server.base_url, wanted)
        doubtful = {
            each.ask.prompt for each in played.outcomes if not expected[each.ask.prompt].allows(each.tokens)
        }
        expected = ask_again(server.base_url, wanted, expected, doubtful)
    tied = {each.ask.prompt for each in played.outcomes if not expected[each.ask.prompt].allows(each.tokens)}
    if tied:
        model = TiedModel(tiny_model("qwen3_moe"))
        for prompt in tied:
            answers = model.answers(prompt, expected[prompt].tokens)
            expected[prompt] = replace(expected[prompt], after_ties=answers)
    counts["prompts with a near tie"] = sum(
        quiet.num_decided < len(quiet.tokens) for quiet in expected.values()
    )
    counts["prompts that the release answers in several ways"] = len(doubtful) - len(tied)
    counts["prompts with a tie between experts"] = len(tied)
    found = all_violations(played, expected, memory, log[1], late)
    if spec.num_requests:
        found += too_gentle(log[0])
    return SoakRecord(spec, counts, played, memory, time.monotonic() - start_s, found)


def _play(plan: SoakPlan, folder: Path, console: Console, scenes: Sequence[str] | None) -> Played:
    with layered_server(plan.spec, folder) as server, Progress(console=console) as progress:
        task = progress.add_task("requests", total=plan.spec.num_requests)
        scheduler = scheduler_process(server)

        async def play() -> Played:
            client = SoakClient(
                server.base_url,
                plan,
                lambda: scheduler.memory_info().rss,
                lambda: progress.advance(task),
                events=folder / EVENTS,
                scenes=scenes,
            )
            return await client.play()

        played = asyncio.run(play())
        if played.trouble:
            played.at_trouble["server log"] = server.log_tail()
        return played


def _counts(played: Played, from_log: Counter[str]) -> dict[str, int]:
    endings = Counter(outcome.ending.split()[0] for outcome in played.outcomes)
    counts = {f"requests: {ending}": number for ending, number in sorted(endings.items())}
    counts["output tokens"] = sum(len(outcome.tokens) for outcome in played.outcomes)
    counts |= {f"operator: {what}": number for what, number in sorted(played.operator.items())}
    return counts | dict(from_log)


def print_table(record: SoakRecord, console: Console) -> None:
    """What happened, in one table."""
    table = Table("what", "figure")
    table.add_row("requests of the plan", str(record.spec.num_requests))
    table.add_row("requests answered, turns and scenes included", str(len(record.played.outcomes)))
    table.add_row("duration (s)", f"{record.played.duration_s:.0f}")
    for name, number in record.counts.items():
        table.add_row(name, str(number))
    memory = record.memory
    table.add_row("scheduler memory, start and end (MiB)", f"{memory.start_mib:.0f}, {memory.end_mib:.0f}")
    quarters = f"{memory.second_quarter_mib:.0f}, {memory.last_quarter_mib:.0f}"
    table.add_row("medians of second and last quarter (MiB)", quarters)
    table.add_row("slope (MiB per 1000 requests)", f"{memory.slope_mib_per_1000_requests:.2f}")
    table.add_row("violations", str(len(record.violations)))
    console.print(table)
