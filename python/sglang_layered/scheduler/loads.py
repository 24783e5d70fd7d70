"""A cohort in flight counts as running wherever SGLang reports its load.

SGLang counts the running batch and the queue. Its own prompts are in neither for one step; a cohort would be
in neither for as many steps as it has groups, and who sends requests by load (`--load-balance-method`, a
router that reads /v1/loads) would take a busy server for an idle one.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from sglang.srt.observability.metrics_collector import QueueCount

from sglang_layered.scheduler.tick import PipelineTick
from sglang_layered.upstream.releases import requests, serving

Requests = Iterable[Any]


def count_cohorts(scheduler: Any) -> None:
    """Let load reports and the gauge of running requests count the prompts in flight as well."""
    in_flight = not_merged if serving.ranks_of(scheduler).pp_size == 1 else not_merged_of_stages

    def running() -> Any:
        return SimpleNamespace(reqs=[*scheduler.running_batch.reqs, *in_flight(scheduler)])

    scheduler.load_inquirer = replace(scheduler.load_inquirer, get_running_batch=running)
    if scheduler.metrics_reporter.current_scheduler_metrics_enabled:
        _count_in_gauge(scheduler, in_flight)


def not_merged(scheduler: Any) -> list[Any]:
    """Prompts that run, or have run their last group, and are not yet in the running batch."""
    last = scheduler.last_batch
    if last is None or not last.forward_mode.is_extend():
        return []
    return _new(last.reqs, scheduler.running_batch.reqs)


def not_merged_of_stages(scheduler: Any) -> list[Any]:
    """The same over pipeline stages: prompts of every tick that are in no micro-batch's running batch."""
    ticks = [batch for batch in scheduler.mbs if isinstance(batch, PipelineTick)]
    prompts = [req for tick in ticks for item in tick.inflight for req in item.reqs]
    return _new(prompts, [req for batch in scheduler.running_mbs for req in batch.reqs])


def _new(prompts: Requests, running: Requests) -> list[Any]:
    """Each prompt once that holds KV slots and is not among the running ones."""
    seen = {id(req) for req in running}
    held = (req for req in prompts if requests.pool_row(req) is not None)
    found = {id(req): req for req in held if not req.finished()}
    return [req for key, req in found.items() if key not in seen]


def _count_in_gauge(scheduler: Any, in_flight: Callable[[Any], list[Any]]) -> None:
    """SGLang reports its statistics through `log_stats`, having counted the decode batch before."""
    collector = scheduler.metrics_collector
    log_stats = type(collector).log_stats.__get__(collector)  # a second loop must not count twice
    written: QueueCount | None = None

    def log_with_cohorts(stats: Any) -> None:
        nonlocal written
        if stats.num_running_reqs is not written:
            written = stats.num_running_reqs = _sum(
                stats.num_running_reqs,
                QueueCount.from_reqs(in_flight(scheduler), scheduler.enable_priority_scheduling),
            )
        log_stats(stats)

    collector.log_stats = log_with_cohorts


def _sum(running: QueueCount, more: QueueCount) -> QueueCount:
    priorities = running.by_priority
    if priorities is not None and more.by_priority is not None:
        priorities = Counter(priorities)
        priorities.update(more.by_priority)
    return QueueCount(running.total + more.total, priorities)
