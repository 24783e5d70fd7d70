"""Two ranks with EAGLE3's drafts and overlap, each in a fork; writes tokens and right drafts as JSON.

The rows that such a draft reads are sums over the ranks.

python test/models/drafted_ranks_run.py OUT.json
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["SGLANG_NCCL_SO_PATH"] = "/nonexistent.so"  # SGLang then falls back to gloo
os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "0|1"
sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from drafts_on_cpu import stand_in  # noqa: E402
from own_process import in_forks  # noqa: E402

from drafted_cases import CASES  # noqa: E402
from family_checks import hugging_face, run  # noqa: E402
from harness import Rank, SteppedScheduler  # noqa: E402
from sglang_layered_lab.serving import free_port  # noqa: E402
from speculative_run import (  # noqa: E402
    CHUNK_TOKENS,
    GROUP_TOKENS,
    acceptance,
    asked_for,
    let_drafts_overlap,
)


def found_on(rank: int, port: int) -> dict[str, Any]:
    stand_in()
    let_drafts_overlap()
    case = CASES["EAGLE3"]
    stepped = SteppedScheduler(
        case.target,
        Rank(rank, 0, port),
        tp_size=2,
        max_total_tokens=4000,
        layered_group_tokens=GROUP_TOKENS,
        chunked_prefill_size=CHUNK_TOKENS,
        **case.speculates,
    )
    assert stepped.scheduler.enable_overlap
    ways = {
        "stock": {"layered_prefill": 0},
        "groups": {"layered_prefill": 1, "layered_num_groups": stepped.num_layers, "layered_max_parked": 1},
    }
    asked, seen = asked_for(), dict[str, Any]()
    for way, settings in ways.items():
        ran = run(stepped, asked, **settings)
        seen[way] = {"tokens": ran.tokens, "accepted": acceptance(stepped, ran.rids)}
    once = asked[: len(asked) // 2]
    seen["equal"] = hugging_face(case.target, once) * 2 == seen["groups"]["tokens"]
    return seen


def main(out: Path) -> None:
    port = free_port()
    ranks = {str(rank): partial(found_on, rank, port) for rank in range(2)}
    out.write_text(json.dumps([*in_forks(ranks, at_once=True).values()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
