"""One of two ranks, stepped like the other, or a rank alone; writes its tokens as JSON.

python test/models/ranks_run.py RANK alone|tp|ep PORT OUT.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "runner"), str(TESTS)]

from tiny_models import tiny_model, use_the_cpu  # noqa: E402

use_the_cpu()
if sys.argv[2] != "alone":
    os.environ["SGLANG_NCCL_SO_PATH"] = "/nonexistent.so"  # SGLang then falls back to gloo
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"

from sglang.srt.layers.moe import fused_moe_native  # noqa: E402
from sglang_layered_kernels.cpu.expert_parallel import experts_of_this_rank  # noqa: E402

from family_checks import CHUNK_TOKENS, GROUP_TOKENS, UNEVEN_GROUPS, prompts, run  # noqa: E402
from harness import Rank, SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402


def start(rank: int, kind: str, port: int) -> SteppedScheduler:
    flags = {} if kind == "alone" else {"tp_size": 2}
    if kind == "ep":
        flags["ep_size"] = 2
        fused_moe_native.moe_forward_native = experts_of_this_rank
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


def main(rank: int, kind: str, port: int, out: Path) -> None:
    stepped = start(rank, kind, port)
    seen = {
        "stock": run(stepped, prompts(0), layered_prefill=0).tokens,
        "groups": run(stepped, prompts(0), layered_prefill=1).tokens,
        "uneven": run(stepped, prompts(0), layered_num_groups=UNEVEN_GROUPS).tokens,
        "aborted and paused": aborted_and_paused(stepped),
    }
    out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
