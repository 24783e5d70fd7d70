"""Random calls to the Triton kernel beside the oracle; prints one JSON line.

Arguments: device (cpu needs TRITON_INTERPRET=1), number of cases.
"""

from __future__ import annotations

import json
import random
import sys

import torch
from sglang_layered_kernels.expert_traffic import ExpertTrafficCounter

from expert_traffic_oracle import Call, expected, random_call, read_layer
from sglang_layered.errors import KernelError

NUM_LAYERS = 2
SHAPES = [(8, 2, 9), (60, 4, 40), (128, 8, 64), (128, 8, 1300), (512, 8, 300), (512, 10, 1000), (1, 1, 3)]


def ids_of(call: Call, top_k: int, dtype: torch.dtype, device: str, strided: bool) -> torch.Tensor:
    """The call's ids; `strided` cuts them out of a wider tensor, as fused shared experts do."""
    ids = torch.tensor(call.rows, dtype=dtype, device=device).reshape(len(call.rows), top_k)
    if not strided:
        return ids
    wide = torch.full((len(call.rows), top_k + 1), 0, dtype=dtype, device=device)
    wide[:, :top_k] = ids
    return wide[:, :top_k]


def run_case(seed: int, device: str) -> dict[str, object] | None:
    """None when counter and oracle agree after each call; else what differs."""
    rng = random.Random(seed)
    num_experts, top_k, max_rows = SHAPES[seed % len(SHAPES)]
    counter = ExpertTrafficCounter(NUM_LAYERS, num_experts, device, use_triton=True)
    calls: list[Call] = []
    for _ in range(4):
        call = random_call(rng, NUM_LAYERS, num_experts, top_k, max_rows)
        dtype = rng.choice([torch.int32, torch.int64])
        ids = ids_of(call, top_k, dtype, device, rng.random() < 0.3)
        if rng.random() < 0.5:
            counter.record(call.layer, ids, call.num_prompt_rows)
        else:
            padding = torch.zeros(rng.choice([0, 0, 5]), top_k, dtype=dtype, device=device)
            split = torch.tensor([call.num_prompt_rows, len(call.rows)], dtype=dtype, device=device)
            counter.record(call.layer, torch.cat([ids, padding]) if len(padding) else ids, split)
        calls.append(call)
        traffic = counter.snapshot()
        got = [read_layer(traffic, layer) for layer in range(NUM_LAYERS)]
        want = expected(calls, NUM_LAYERS, num_experts)
        if got != want:
            return {"seed": seed, "num_calls": len(calls), "got": got, "want": want}
    return None


def count_strays(device: str) -> str:
    """What snapshot says after 2 small calls and 3 large ones with one stray id each."""
    counter = ExpertTrafficCounter(1, 128, device, use_triton=True)
    for num_rows in (16, 1000, 1000, 16, 1000):
        ids = torch.zeros(num_rows, 8, dtype=torch.int32, device=device)
        ids[num_rows // 2, 3] = 128
        counter.record(0, ids, num_rows // 3)
    try:
        counter.snapshot()
    except KernelError as error:
        return str(error)
    return "no error"


def main() -> None:
    device = sys.argv[1]
    seeds = range(int(sys.argv[2]))
    failures = [failure for failure in (run_case(seed, device) for seed in seeds) if failure]
    print(json.dumps({"num_cases": len(seeds), "failures": failures[:2], "strays": count_strays(device)}))


if __name__ == "__main__":
    main()
