"""Two ranks, stepped alike, or a rank alone, each in a fork; writes their tokens by kind as JSON.

python test/models/ranks_run.py OUT.json alone|tp|ep|lora|asked ...
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "runner"), str(TESTS)]

from tiny_models import tiny_model, use_the_cpu  # noqa: E402

use_the_cpu()

from lora_models import ATTENTION, EXPERTS, leave_memory_unpinned, make_adapter  # noqa: E402
from own_process import in_forks  # noqa: E402
from sglang.srt.lora.layers import FusedMoEWithLoRA  # noqa: E402
from sglang.srt.lora.lora_registry import LoRARef  # noqa: E402
from sglang_layered_kernels.cpu.expert_adapters import experts_with_adapters  # noqa: E402

from family_checks import (  # noqa: E402
    CHUNK_TOKENS,
    GROUP_TOKENS,
    NUM_OUTPUTS,
    UNEVEN_GROUPS,
    prompts,
    run,
)
from harness import Rank, SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402
from sglang_layered.core.events import PolicyAnswered  # noqa: E402
from sglang_layered_lab.serving import free_port  # noqa: E402

# Without NCCL SGLang falls back to gloo.
OVER_GLOO = {"SGLANG_NCCL_SO_PATH": "/nonexistent.so", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
ADAPTERS = {"a": (4, ATTENTION), "b": (8, EXPERTS)}  # rank and modules
ASKED = ("wishes:AtRandom", "flow-prefill", "fair-batching", "near-late", "staggered")
ORDER = ("a", None, "b", "b", "b", "a", "a")  # of the prompts


def start(rank: int, kind: str, port: int, **flags: Any) -> SteppedScheduler:
    flags |= {} if kind == "alone" else {"tp_size": 2}
    if kind == "ep":
        flags["ep_size"] = 2
    return SteppedScheduler(
        tiny_model("qwen3_moe"),
        Rank(rank, rank if kind == "ep" else 0, port),
        max_total_tokens=4000,
        layered_group_tokens=GROUP_TOKENS,
        chunked_prefill_size=CHUNK_TOKENS,
        **flags,
    )


def aborted_and_paused(stepped: SteppedScheduler) -> list[list[int]]:
    """Tokens of requests beside one that is aborted at a group, and a pause at another group."""
    stepped.drain()
    first = stepped.send(prompt(15, 81), 12)
    stepped.step(2)
    victim = stepped.send(prompt(300, 82), 4)
    stepped.step_until(lambda: stepped.next_group == 2)
    stepped.abort(victim)
    second = stepped.send(prompt(290, 83), 12)
    stepped.step_until(lambda: stepped.next_group == 1)
    stepped.pause("retract")
    stepped.resume()
    return stepped.finish(first, second)


def adapted(rank: int, port: int, folder: Path) -> dict[str, Any]:
    """What both ranks answer with adapters, of which each has its part; and what they were asked."""
    leave_memory_unpinned()
    FusedMoEWithLoRA._forward_with_lora = experts_with_adapters
    refs = {None: None} | {
        name: LoRARef(
            lora_name=name,
            lora_path=str(make_adapter(folder / name, seed, size, 8, modules)),
            pinned=False,
        )
        for seed, (name, (size, modules)) in enumerate(ADAPTERS.items())
    }
    given: Any = {"enable_lora": True, "lora_backend": "torch_native", "max_loras_per_batch": len(refs)}
    stepped = start(rank, "lora", port, lora_paths=[ref for ref in refs.values() if ref], **given)
    passes = {"stock": {"layered_prefill": 0}, "groups": {"layered_prefill": 1, "layered_num_groups": 0}}
    passes["uneven"] = {"layered_prefill": 1, "layered_num_groups": UNEVEN_GROUPS}
    seen: dict[str, Any] = {
        "prompts": prompts(0),
        "adapters": [name and refs[name].lora_path for name in ORDER],
    }
    for way, settings in passes.items():
        stepped.drain()
        assert stepped.change(settings)
        rids = []
        for tokens, name in zip(prompts(0), ORDER, strict=True):
            rids.append(stepped.send(tokens, NUM_OUTPUTS, lora_id=name and refs[name].lora_id))
            stepped.step(3)
        seen[way] = stepped.finish(*rids)
    return seen


def asked(rank: int, port: int) -> dict[str, Any]:
    """Tokens under policies that answer questions, with what they answered; the clock is rank 0's."""
    stepped = start(rank, "asked", port, slo_ttft_ms=60_000, slo_tbt_ms=60_000)
    seen: dict[str, Any] = {"": beside_a_stream(stepped)}
    controls, before = stepped.loop.controls, stepped.loop.controls.config
    for name in ASKED:
        policy = replace(before, layered_policy=name, layered_max_parked=1)
        controls._adopt(policy, "test")
        stepped.loop._overtaking._use(policy)
        seen[name] = beside_a_stream(stepped)
        heard = [each for each in stepped.events if isinstance(each, PolicyAnswered)]
        seen[f"{name} answered"] = [[each.question, *each.request_ids, each.seconds] for each in heard]
        controls._adopt(before, "test")
    return seen


def beside_a_stream(stepped: SteppedScheduler) -> list[list[int]]:
    """Tokens of prompts of many lengths that come while others decode and are computed."""
    stepped.drain()
    rids = [stepped.send(prompt(12 + seed, 90 + seed), 40) for seed in range(3)]
    for seed, length in enumerate((300, 20, 250, 30, 400, 25, 15)):
        received_steps(stepped, 3)
        rids.append(stepped.send(prompt(length, 70 + seed), 6, priority=seed % 2))
    while not all(stepped.reqs[rid].finished() for rid in rids):
        received_steps(stepped, 1)
    return stepped.finish(*rids)


def received_steps(stepped: SteppedScheduler, count: int) -> None:
    """Steps as the loop makes them: what is received first has rank 0's clock."""
    for _ in range(count):
        stepped.scheduler.process_input_requests(stepped.scheduler.request_receiver.recv_requests())
        stepped.step()


def found_on(rank: int, kind: str, port: int, folder: Path) -> dict[str, Any]:
    if kind != "alone":
        os.environ.update(OVER_GLOO)
    if kind == "asked":
        return asked(rank, port)
    if kind == "lora":
        return adapted(rank, port, folder)
    stepped = start(rank, kind, port)
    return {
        "stock": run(stepped, prompts(0), layered_prefill=0).tokens,
        "groups": run(stepped, prompts(0), layered_prefill=1).tokens,
        "uneven": run(stepped, prompts(0), layered_num_groups=UNEVEN_GROUPS).tokens,
        "aborted and paused": aborted_and_paused(stepped),
    }


def main(out: Path, *kinds: str) -> None:
    found = {}
    for kind in kinds:
        ranks, port, folder = range(1 if kind == "alone" else 2), free_port(), out.with_suffix("") / kind
        cases = {str(rank): partial(found_on, rank, kind, port, folder / str(rank)) for rank in ranks}
        found[kind] = [*in_forks(cases, at_once=True).values()]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
