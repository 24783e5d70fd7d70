"""SGLang's hierarchical cache under the layered loop, on a CPU: what `test_hicache.py` asks for, as JSON.

A layer's load is put off until somebody waits for its event, so a missing wait shows as a wrong token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_models import tiny_model, use_the_cpu

use_the_cpu()

# ruff: noqa: E402
from hicache_on_cpu import LazyLoads, stand_in

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.events import CohortFinished
from sglang_layered.scheduler import cohorts
from sglang_layered.upstream import launch
from sglang_layered.upstream.releases import serving

NUM_PROMPTS, PREFIX, TAIL = 4, 400, 60


def make_scheduler(**flags: Any) -> SteppedScheduler:
    """KV for three of the four prompts, so that each one is written to the host and evicted by others."""
    stepped = SteppedScheduler(
        tiny_model("qwen3_moe"),
        max_total_tokens=1500,
        max_running_requests=16,
        layered_group_tokens=16,
        chunked_prefill_size=512,
        enable_hierarchical_cache=True,
        hicache_ratio=4.0,
        hicache_size=0,
        hicache_io_backend="direct",
        hicache_mem_layout="layer_first",
        hicache_write_policy="write_through",
        **flags,
    )
    stepped.scheduler.tree_cache.load_back_threshold = 1
    stepped.scheduler.tree_cache.write_through_threshold = 1
    return stepped


class Run:
    """One scheduler, its prompts, and what they answer when nothing is cached."""

    def __init__(self, stepped: SteppedScheduler, loads: LazyLoads) -> None:
        self.stepped, self.loads = stepped, loads
        self.prefixes = [prompt(PREFIX, seed) for seed in range(NUM_PROMPTS)]
        self.whole = [prefix + prompt(TAIL, 100 + seed) for seed, prefix in enumerate(self.prefixes)]
        self.expected = [self.answer(tokens) for tokens in self.whole]
        self.forget()

    def forget(self) -> None:
        """Empty all caches, on the device and on the host."""
        self.stepped.step_until(self.stepped.scheduler.is_fully_idle)
        self.stepped.step()
        assert self.stepped.scheduler.flush_cache(empty_cache=False)

    def fill(self) -> None:
        """Compute every prefix once: only the last ones stay on the device."""
        for prefix in self.prefixes:
            self.stepped.finish(self.stepped.send(prefix, 2))
            self.stepped.step(2)
        self.loads.num_put_off = self.loads.num_waited = 0
        self.loads.layers.clear()

    @contextmanager
    def decoding(self) -> Iterator[str]:
        """Something decodes; its answer is checked by nobody, its rows are beside the cohort's."""
        rid = self.stepped.send(prompt(5, 77), 200)
        self.stepped.step(2)
        yield rid
        self.stepped.abort(rid)
        self.stepped.step_until(self.stepped.scheduler.is_fully_idle)

    def answer(self, tokens: list[int]) -> list[int]:
        """Of one prompt beside something that decodes."""
        with self.decoding():
            [output] = self.stepped.finish(self.stepped.send(tokens, 4))
        return output


def hits(run: Run) -> dict[str, Any]:
    """Every prompt finds its prefix on the host."""
    run.fill()
    got = [run.answer(tokens) for tokens in run.whole]
    return {"equal": [one == other for one, other in zip(got, run.expected, strict=True)]}


def one_group(run: Run) -> dict[str, Any]:
    """The step of a cohort's first group."""
    run.fill()
    with run.decoding():
        run.stepped.send(run.whole[0], 4)
        run.stepped.step()
        inflight = run.stepped.loop.inflight
        assert inflight is not None
        return {"layers": list(run.loads.layers), "group": list(range(inflight.cohort.plan.groups[0].end))}


def dropped(run: Run) -> dict[str, Any]:
    """A cohort ends at each of its groups, by an abort or a pause, and its prompt comes again."""
    equal = []
    for group in range(1, 4):
        run.forget()
        run.fill()
        with run.decoding():
            rid = run.stepped.send(run.whole[0], 4)
            run.stepped.step_until(lambda at=group: run.stepped.next_group == at)
            run.stepped.abort(rid)
            run.stepped.step()
            [again] = run.stepped.finish(run.stepped.send(run.whole[0], 4))
        equal.append(again == run.expected[0])
    return {"equal": equal}


def events(run: Run) -> dict[str, Any]:
    """Writes to the host that end while a cohort flies."""
    run.fill()
    tree = run.stepped.scheduler.tree_cache
    with run.decoding() as rid:
        run.stepped.send(run.whole[0], 4)
        run.stepped.step()
        assert run.stepped.loop.inflight is not None and rid
        pending = [len(tree.ongoing_load_back)]
        run.stepped.step(2)
        assert run.stepped.loop.inflight is not None
        return {"pending": [*pending, len(tree.ongoing_load_back)]}


def joined(run: Run) -> dict[str, Any]:
    """One prompt twice: the first computes its prefix anew, the second loads it while the first decodes."""
    run.fill()
    with run.decoding():
        first = run.stepped.send(run.whole[0], 4, return_logprob=True, logprob_start_len=0)
        run.stepped.step()
        second = run.stepped.send(run.whole[0], 4)
        outputs = run.stepped.finish(first, second)
    return {"equal": [output == run.expected[0] for output in outputs]}


def overtaken(run: Run) -> dict[str, Any]:
    """A short prompt overtakes the cohort for which their common prefix is on its way."""
    tokens = run.prefixes[0] + prompt(10, 90)
    expected = [run.expected[0], run.answer(tokens)]
    run.forget()
    run.fill()
    assert run.stepped.change({"layered_max_parked": 1})
    with run.decoding():
        rids = [run.stepped.send(run.whole[0], 4)]
        run.stepped.step()
        rids.append(run.stepped.send(tokens, 4))
        outputs = run.stepped.finish(*rids)
    assert run.stepped.change({"layered_max_parked": 0})
    ends = [event.request_ids for event in run.stepped.events if isinstance(event, CohortFinished)]
    equal = [one == other for one, other in zip(outputs, expected, strict=True)]
    return {"equal": equal, "first": ends[-2] == (rids[1],)}


@contextmanager
def nothing(*args: Any) -> Iterator[None]:
    """In place of a context manager."""
    yield


# What is taken out of the product, so that a scenario shows what it is for: where, which name, what instead.
WITHOUT: dict[str, tuple[Any, str, Any]] = {
    "loads": (launch, "loads_of", nothing),
    "drop": (cohorts, "wait_for_loads", lambda scheduler, batch: None),
    "events": (serving, "collect_events", lambda scheduler: None),
    "late": (cohorts.CohortSet, "wait_for_loads", lambda cohorts: None),
}
SCENARIOS = {
    "hits": hits,
    "one_group": one_group,
    "dropped": dropped,
    "events": events,
    "joined": joined,
    "overtaken": overtaken,
}


def played(run: Run, name: str) -> dict[str, Any]:
    """What a scenario found; `NAME/PART` plays it without that part of the product."""
    scenario, _, without = name.partition("/")
    run.forget()
    if not without:
        found = SCENARIOS[scenario](run)
    else:
        module, attribute, instead = WITHOUT[without]
        kept = getattr(module, attribute)
        setattr(module, attribute, instead)
        try:
            found = SCENARIOS[scenario](run)
        finally:
            setattr(module, attribute, kept)
    return found | {"put_off": run.loads.num_put_off, "waited": run.loads.num_waited}


def main() -> None:
    """Write what each named scenario found into a file: OUT, flags as JSON, names."""
    out, flags, *names = sys.argv[1:]
    loads = stand_in()
    run = Run(make_scheduler(**json.loads(flags)), loads)
    Path(out).write_text(json.dumps({name: played(run, name) for name in names}))


if __name__ == "__main__":
    main()
