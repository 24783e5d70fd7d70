"""SGLang's scheduler and our layered loop on the emulated GPU: answers alone and beside others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.managers.scheduler import Scheduler

from emulated_graphs import GRAPHS
from emulated_streams import CURRENT, recorded
from harness import SteppedScheduler
from memory_watch import LAUNCHED, WATCH, watch_triton
from moved_kernels import set_argument
from prompts import alone
from scenario_requests import LONG, OVERTAKER, SHORT
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.core.events import CohortFinished, StepDone
from sglang_layered.runner.decode_graphs.paths import make_decode_graphs

GRAPH_SIZES = (1, 2, 4)
FLAGS: dict[str, Any] = {
    "layered_execution": "auto",
    "layered_group_tokens": 64,
    "layered_check_invariants": "strict",
    "chunked_prefill_size": 512,
    "max_total_tokens": 4096,
    "max_running_requests": 8,
    "context_length": 2048,
    "cuda_graph_bs_decode": list(GRAPH_SIZES),
    "disable_prefill_cuda_graph": True,
    "moe_runner_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "mm_feature_transport": "cpu",
    "disable_custom_all_reduce": True,
}


@dataclass
class Emulated:
    """One server of this process; `num_captures_when_ready` graphs were there when its event loop began."""

    stepped: SteppedScheduler
    num_captures_when_ready: int

    @classmethod
    def start(cls, model: Path, **flags: Any) -> Emulated:
        WATCH.__enter__()
        when_ready = []
        with pytest.MonkeyPatch.context() as patch:
            run = Scheduler.run_event_loop
            patch.setattr(
                Scheduler, "run_event_loop", lambda self: (when_ready.append(GRAPHS.num_captures), run(self))
            )
            stepped = SteppedScheduler(model, **FLAGS | flags)
        scheduler = stepped.scheduler
        assert scheduler._war_barrier_enabled and CURRENT[-1] is scheduler.schedule_stream
        for name in ("schedule", "forward", "copy"):
            stream = getattr(scheduler, f"{name}_stream", None)
            if stream is not None:
                stream.name = name
        emulated = cls(stepped, when_ready[0])
        if emulated.side_stream is not None:
            emulated.side_stream.name = "side"
        emulated._watch()
        return emulated

    @property
    def model_runner(self) -> Any:
        return self.stepped.scheduler.tp_worker.model_runner

    @property
    def graphs(self) -> Any:
        """The layered decode graphs."""
        return self.runner.decode_paths.graphs

    @property
    def runner(self) -> Any:
        """The runner of layered steps."""
        return self.stepped.loop._execution._runner

    @property
    def side_stream(self) -> Any:
        beside = self.stepped.loop._execution._beside
        return None if beside is None else beside._stream

    def _watch(self) -> None:
        scheduler, runner = self.stepped.scheduler, self.runner
        WATCH.name(scheduler.req_to_token_pool.req_to_token, "req_to_token")
        WATCH.name(scheduler.future_map.output_tokens_buf, "relayed tokens")
        for name, backend in (("decode", self.model_runner.attn_backend), ("prompt", runner._prompt_backend)):
            workspace = getattr(backend, "workspace_buffer", None)
            if workspace is not None:
                WATCH.name(workspace, f"workspace of {name} attention")
        run_layers = runner.run_layers

        def run_and_name(step: Any, rows: Any) -> Any:
            for name in ("input_ids", "positions", "out_cache_loc", "seq_lens", "req_pool_indices"):
                WATCH.name(getattr(step.prompt, name), f"prompt's {name}", "schedule")
            output = run_layers(step, rows)
            made = {} if output.parked is None else output.parked.tensors
            if output.prompt_logits is not None:
                made = {"logits": output.prompt_logits.next_token_logits}
            for name, tensor in made.items():
                if tensor is not None:
                    WATCH.name(tensor, f"prompt's {name}", CURRENT[-1].name)
                    WATCH.uses(tensor, is_write=True)
            return output

        runner.run_layers = run_and_name
        watch_triton()
        tensor: Any = torch.Tensor
        tensor.record_stream = lambda tensor, stream: WATCH.keep(tensor, stream)

    def use(self, execution: str, granularity: int | None = None) -> None:
        """Run layered steps in this way from now on; with a granularity, on graphs captured anew."""
        self.stepped.loop._execution.choice = StrategyChoice(execution)
        if granularity is not None:
            set_argument(self.model_runner.server_args, "layered_graph_granularity", granularity)
            self.runner.decode_paths.graphs = make_decode_graphs(self.model_runner, self.runner._calls)

    def alone(self) -> list[list[int]]:
        """What each request answers with nothing beside it."""
        return [alone(self.stepped, *request) for request in SHORT + LONG]

    def beside(self) -> dict[str, Any]:
        """The short ones decode while the long one passes the layer groups, with all that was recorded."""
        stepped, experts = self.stepped, self._expert_ids()
        LAUNCHED.clear()
        replays, mismatches = GRAPHS.num_replays, len(GRAPHS.mismatches)
        broken_replays = GRAPHS.num_broken_replays
        with recorded() as order:
            running = [stepped.send(*request) for request in SHORT]
            stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == len(SHORT))
            tokens = stepped.finish(*running, stepped.send(*LONG[0]))
            steps = [event for event in stepped.events if isinstance(event, StepDone)]
            ways = Counter(str(step.strategy) for step in steps if step.kind == "layered")
            stepped.drain()
        return {
            "tokens": tokens,
            "num_replays": GRAPHS.num_replays - replays,
            "num_group_replays": GRAPHS.num_broken_replays - broken_replays,
            "mismatches": GRAPHS.mismatches[mismatches:],
            "layered_steps": dict(ways),
            "triton_kernels": sorted(LAUNCHED),
            "violations": order.violations,
            "num_accesses": order.num_accesses,
            "expert_ids": [
                [now - then for now, then in zip(*rows, strict=True)]
                for rows in zip(self._expert_ids(), experts, strict=True)
            ],
        }

    def overtaken(self) -> dict[str, Any]:
        """A short prompt overtakes the long one in its midst; both beside one that decodes."""
        stepped, mismatches = self.stepped, len(GRAPHS.mismatches)
        asked = [*SHORT[:1], *LONG, *OVERTAKER]
        expected = [alone(stepped, *request) for request in asked]
        assert stepped.change({"layered_max_parked": 1})
        with recorded() as order:
            rids = [stepped.send(*asked[0])]
            stepped.step_until(lambda: stepped.scheduler.running_batch.batch_size() == 1)
            rids.append(stepped.send(*asked[1]))
            stepped.step_until(lambda: stepped.next_group == 1)
            rids.append(stepped.send(*asked[2]))
            tokens = stepped.finish(*rids)
            ends = [event.request_ids for event in stepped.events if isinstance(event, CohortFinished)]
            assert stepped.change({"layered_max_parked": 0})
            stepped.drain()
        return {
            "equal": [one == other for one, other in zip(tokens, expected, strict=True)],
            "order": [rids.index(rid) for ids in ends for rid in ids],
            "mismatches": GRAPHS.mismatches[mismatches:],
            "violations": order.violations,
        }

    def _expert_ids(self) -> list[list[int]]:
        """Ids counted so far of prompt rows and of decode rows, by layer; nothing without the counter."""
        watch = getattr(self.model_runner, "layered_expert_watch", None)
        if watch is None:
            return []
        counted = watch._counter.snapshot()
        return [ids.sum(-1).tolist() for ids in (counted.prompt_tokens, counted.decode_tokens)]
