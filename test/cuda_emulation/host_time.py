"""Host time of a step: the real scheduler and runner on the emulated GPU, with kernels that do nothing.

A model of 48 layers and a cohort of 8192 tokens. In one process take turns: decode steps of SGLang's loop and
of ours, SGLang's mixed chunks, and layered steps, their groups eagerly and by graphs. A step's CPU time is
told apart into *layers* (SGLang's model where no graph is replayed, with what we put around its attention),
*launching* (all else of a forward), *planning* (attention metadata), *results*, and *scheduling* (the rest).
Launches themselves are free here: a device adds its driver's time for each. Run by `scripts/bench-host-time`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cpu_clock import Clock, Step
from host_report import PARTS, compared, summary, table_of
from moved_kernels import set_argument
from step_calls import StepCalls
from worker import prepare

DEVICE = "h100"
NUM_LAYERS, COHORT_TOKENS, CHUNK_TOKENS, OUTPUT_TOKENS = 48, 8192, 512, 1000
FLAGS: dict[str, Any] = {
    "attention_backend": "fa3",
    "dtype": "bfloat16",
    "layered_check_invariants": "basic",
    "chunked_prefill_size": COHORT_TOKENS,
    "max_running_requests": 300,
    "context_length": COHORT_TOKENS,
    "disable_prefill_cuda_graph": True,
    "moe_runner_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mm_feature_transport": "cpu",
    "disable_custom_all_reduce": True,
    "cuda_graph_max_bs_decode": 256,
}
FEWEST_LAYERED = 4  # steps a round; a cohort in one group has one
TOKENS_A_ROUND = 100  # no round makes so many steps
PROFILED = 40  # decode steps

NOTHING: AbstractContextManager[None] = nullcontext()


class Bench:
    """One scheduler whose kernels do nothing, with running requests."""

    def __init__(self, num_rows: int, quantization: str | None, group_rows: Sequence[int] = ()) -> None:
        from triton.runtime.interpreter import GridExecutor

        import no_kernels
        from harness import SteppedScheduler

        no_kernels.emulate_no_kernels()
        self._plain = no_kernels.without_emulation
        pool = num_rows * (OUTPUT_TOKENS + 64) + 4 * COHORT_TOKENS
        given = FLAGS | {"quantization": quantization, "layered_graph_group_rows": list(group_rows) or None}
        self.stepped = SteppedScheduler(_model(), max_total_tokens=pool, **given)
        self.launches = no_kernels.NUM_LAUNCHES
        scheduler, loop = self.stepped.scheduler, self.stepped.loop
        self.scheduler = scheduler
        loop.stream.remove(loop.report)  # it tells the test of every step, as no server does by itself
        loop.is_heard = False
        self.model_runner = scheduler.tp_worker.model_runner
        vocab_size = self.model_runner.model_config.vocab_size
        no_kernels.give_fixed_logits(self.model_runner.model, vocab_size, num_rows + 8)
        self.clock = Clock(PARTS)
        self._runner = loop._execution._runner
        # Triton's interpreter runs what it launches: on a GPU that is no host time.
        self.clock.watch(GridExecutor, "__call__", "kernels")
        self.clock.watch(self.model_runner, "forward", "launching")
        self.clock.watch(self.model_runner.model, "forward", "layers")
        self.clock.watch(scheduler, "process_batch_result", "results")
        for backend in (self.model_runner.attn_backend, self._runner._prompt_backend):
            self._watch(backend)
        self._watch(self._runner.decode_paths.graphs._attention.backend)
        self._seeds = itertools.count()  # a prompt that came before would be in the prefix cache
        self._group_graphs = self._runner.group_graphs
        self.ways = (False, True) if group_rows else (False,)
        self.num_rows = num_rows
        self._begin()

    def keep_running(self, num_tokens: int) -> None:
        """Others take the place of the running requests, where these have too few tokens left."""
        if OUTPUT_TOKENS - len(self.scheduler.running_batch.reqs[0].output_ids) > num_tokens:
            return
        for req in self.scheduler.running_batch.reqs:
            self.stepped.abort(req.rid)
        self.stepped.drain()
        self._begin()

    def _begin(self) -> None:
        for _ in range(self.num_rows):
            self._send(8, next(self._seeds), OUTPUT_TOKENS)
        self.decode(8)

    def cut(self, num_groups: int, granularity: int | None, *, by_graphs: bool = True) -> int:
        """Cut cohorts so, and capture layered graphs of this granularity; gives how many there are.

        Groups run eagerly, or by graphs where the server has them.
        """
        self._runner.group_graphs = self._group_graphs if by_graphs else None
        from sglang_layered.runner.decode_graphs.paths import make_decode_graphs

        assert self.stepped.change({"layered_num_groups": num_groups})
        args, paths = self.model_runner.server_args, self._runner.decode_paths
        if args.layered_graph_granularity != granularity:
            set_argument(args, "layered_graph_granularity", granularity)
            paths.graphs = make_decode_graphs(self.model_runner, self._runner._calls)
            self._watch(paths.graphs._attention.backend)
        return len(paths.graphs.buckets.sizes) * paths.graphs.segments.num_graphs

    def decode(self, count: int, around: AbstractContextManager[None] = NOTHING) -> list[Step]:
        """Decode steps of our loop."""
        return [self._timed(self.stepped.step, around) for _ in range(count)]

    def cohort(self, around: AbstractContextManager[None] = NOTHING) -> list[Step]:
        """The layered steps of one cohort but its first and its last; all of them, if they are no more.

        `around` is entered for every step but the first and the last.
        """
        self._send_prompts()
        steps = [self._timed(self.stepped.step)]
        while (inflight := self.stepped.loop.inflight) is not None:
            is_middle = not inflight.cohort.is_last_group
            steps.append(self._timed(self.stepped.step, around if is_middle else NOTHING))
        self.decode(2)
        assert len(self.scheduler.running_batch.reqs) >= self.num_rows, "requests ended: measure less at once"
        return steps[1:-1] or steps

    def stock(self, count: int) -> list[Step]:
        """Decode steps of SGLang's overlap loop."""
        return [step for _, step in self._stock(count)]

    def mixed(self) -> list[Step]:
        """SGLang's mixed chunks with all decode rows."""
        scheduler = self.scheduler
        before = scheduler.is_mixed_chunk, scheduler.chunked_prefill_size
        scheduler.is_mixed_chunk, scheduler.chunked_prefill_size = True, CHUNK_TOKENS
        self._send_prompts(2)
        steps = self._stock(COHORT_TOKENS // CHUNK_TOKENS)
        scheduler.is_mixed_chunk, scheduler.chunked_prefill_size = before
        return [step for mode, step in steps if mode is not None and mode.is_mixed()][1:]

    def _stock(self, count: int) -> list[tuple[Any, Step]]:
        steps: list[tuple[Any, Step]] = []

        def note() -> bool:
            batch = self.scheduler.last_batch
            steps.append((None if batch is None else batch.forward_mode, self._taken()))
            return len(steps) <= count + 1

        with self._plain():
            self.stepped.run_stock(note)
        return steps[2:]

    def _timed(self, call: Callable[[], None], around: AbstractContextManager[None] = NOTHING) -> Step:
        with self._plain():
            self._taken()
            with around:
                call()
            return self._taken()

    def _taken(self) -> Step:
        taken = self.clock.take() | {"launches": self.launches[0]}
        self.launches[0] = 0
        return taken

    def _send(self, num_tokens: int, seed: int, num_outputs: int) -> None:
        from prompts import prompt

        self.stepped.send(prompt(num_tokens, seed), num_outputs)

    def _send_prompts(self, count: int = 4) -> None:
        for _ in range(count):
            self._send(COHORT_TOKENS // 4, next(self._seeds), 1)

    def _watch(self, backend: Any) -> None:
        for method in ("init_forward_metadata", "init_forward_metadata_out_graph"):
            self.clock.watch(backend, method, "planning")


def _model() -> Path:
    """Many layers, few numbers: rows that are copied between the layers cost nothing."""
    from tiny_models import MODELS

    from sglang_layered_lab.models.catalogue import find_recipe
    from sglang_layered_lab.models.make import make_from_recipe

    tiny = find_recipe("qwen3_moe", "tiny", num_layers=NUM_LAYERS, dtype="bfloat16")
    folder = MODELS / f"qwen3_moe-host-{NUM_LAYERS}"
    make_from_recipe(replace(tiny, head_size=64, hidden_size=16, num_kv_heads=1), folder)
    return folder


def measure(
    bench: Bench, groups: Sequence[int], granularities: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each kind of step; mixed chunks know no granularity and are measured at the default's."""
    rows, began = [], time.monotonic()
    for granularity in [None, *granularities]:
        for by_graphs, num_groups in itertools.product(bench.ways, groups):
            num_graphs = bench.cut(num_groups, granularity, by_graphs=by_graphs)
            bench.keep_running(rounds * TOKENS_A_ROUND)
            done = [_round(bench, with_mixed=granularity is None) for _ in range(rounds)]
            about = {"rows": bench.num_rows, "groups": num_groups, "by_graphs": by_graphs}
            about |= {"granularity": granularity, "graphs": num_graphs}
            for kind in done[0]:
                rows.append(about | summary(kind, [step for turn in done for step in turn[kind]]))
            rows[-1] |= compared(done)
            click.echo(f"{time.monotonic() - began:.0f} s: {about}", err=True)
    return rows


def profile(bench: Bench, num_groups: int) -> dict[str, Any]:
    """What decode steps and layered steps call, by kind."""
    calls = {"decode": StepCalls()}
    bench.keep_running(len(bench.ways) * TOKENS_A_ROUND)
    bench.decode(PROFILED, calls["decode"])
    for by_graphs in bench.ways:
        bench.cut(num_groups, None, by_graphs=by_graphs)
        kind = "layered step by graphs" if by_graphs else "layered step"
        with_profile = calls[kind] = StepCalls()
        bench.cohort()
        for _ in range(2):
            bench.cohort(with_profile)
    return {kind: each.summary() for kind, each in calls.items()} | {"groups": num_groups}


def _round(bench: Bench, with_mixed: bool) -> dict[str, list[Step]]:
    kinds = {"stock decode": bench.stock(10), "layered loop, decode": bench.decode(11)[1:]}
    if with_mixed:
        kinds["stock mixed chunk"] = bench.mixed()
        bench.decode(2)
    layered: list[Step] = []
    while len(layered) < FEWEST_LAYERED:
        layered += bench.cohort()
    return kinds | {"layered step": layered}


@click.command()
@click.option("--rows", default=64, show_default=True, help="Running requests.")
@click.option("--groups", multiple=True, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--granularity", "granularities", multiple=True, type=int, help="Beside the default.")
@click.option("--group-rows", multiple=True, type=int, help="By graphs of so many rows, too.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--quantization", help="Quantize the weights when they are loaded, as SGLang's flag.")
@click.option("--record", type=click.Path(path_type=Path), help="Write everything here as JSON.")
def main(
    rows: int,
    groups: tuple[int, ...],
    granularities: tuple[int, ...],
    group_rows: tuple[int, ...],
    rounds: int,
    quantization: str | None,
    record: Path | None,
) -> None:
    """Print what steps cost the host, in CPU milliseconds, and how many calls they are."""
    prepare(DEVICE)
    bench = Bench(rows, quantization, group_rows)
    found = measure(bench, groups, granularities, rounds)
    calls = profile(bench, max(groups))
    console = Console(width=160)
    console.print(table_of(found))
    for kind in (kind for kind in calls if kind != "groups"):
        console.print(f"calls of a {kind}, {max(groups)} groups:", calls[kind]["calls"])
    if record is not None:
        from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine

        about = {"versions": installed_versions(), "machine": this_machine(), "commit": current_commit()}
        spec = {"layers": NUM_LAYERS, "cohort_tokens": COHORT_TOKENS, "chunk_tokens": CHUNK_TOKENS} | FLAGS
        spec["quantization"] = quantization
        spec["layered_graph_group_rows"] = list(group_rows)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(
            json.dumps({"spec": spec, **about, "rows": found, "profile": calls}, indent=1) + "\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
