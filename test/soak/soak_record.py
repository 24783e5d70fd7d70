"""Runs one soak from start to verdict, prints its table and writes its record."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sglang_layered.quickstart.record import current_commit, installed_versions, this_machine
from soak_checks import MemoryVerdict, all_violations, memory_verdict, read_log
from soak_client import Played, SoakClient
from soak_plan import SoakPlan, SoakSpec, make_plan
from soak_replay import ask_again, replay
from soak_servers import (
    LAYERED,
    OVERCOMMIT,
    OVERCOMMIT_ENV,
    layered_server,
    prepare_environment,
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
            "server": {"flags": [*LAYERED, *OVERCOMMIT], "env": OVERCOMMIT_ENV},
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
            "violations": self.violations,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document) + "\n")


def run_soak(spec: SoakSpec, folder: Path, console: Console) -> SoakRecord:
    """Serve, disturb, replay on SGLang as released, compare; logs and the released SGLang go to `folder`."""
    prepare_environment()
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(spec)
    played = _play(plan, folder, console)
    log = read_log(folder / "layered.log")
    memory = memory_verdict(played.memory)
    if played.trouble:  # there is nothing to compare
        return SoakRecord(spec, _counts(played, log[0]), played, memory, 0.0, played.trouble + log[1])
    console.print("Replaying each prompt alone on SGLang as released")
    with TemporaryDirectory() as site, released_server(release_site(Path(site)), folder) as server:
        start_s = time.monotonic()
        expected = replay(server.base_url, plan)
        doubtful = {
            each.job.prompt for each in played.outcomes if not expected[each.job.prompt].allows(each.tokens)
        }
        expected = ask_again(server.base_url, plan, expected, doubtful)
        replay_s = time.monotonic() - start_s
    counts = _counts(played, log[0])
    counts["prompts with a near tie"] = sum(quiet.num_decided < len(quiet.tokens) for quiet in expected)
    counts["prompts that the release answers in several ways"] = len(doubtful)
    found = all_violations(played.outcomes, expected, memory, log)
    return SoakRecord(spec, counts, played, memory, replay_s, found)


def _play(plan: SoakPlan, folder: Path, console: Console) -> Played:
    with layered_server(plan.spec, folder) as server, Progress(console=console) as progress:
        task = progress.add_task("requests", total=plan.spec.num_requests)
        scheduler = scheduler_process(server)

        async def play() -> Played:
            client = SoakClient(
                server.base_url, plan, lambda: scheduler.memory_info().rss, lambda: progress.advance(task)
            )
            return await client.play()

        played = asyncio.run(play())
        if played.trouble:
            played.trouble.append(f"the server's log ends with\n{server.log_tail()}")
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
    table.add_row("requests", f"{len(record.played.outcomes)} of {record.spec.num_requests}")
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
