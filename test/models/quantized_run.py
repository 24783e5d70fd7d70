"""Checks quantized models one after another in this process and writes what was seen as JSON; see --help."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the slots of sliding-window pools come from a Triton kernel
sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from tiny_models import quantized_model, use_the_cpu  # noqa: E402

use_the_cpu()

import click  # noqa: E402
from quantized_on_cpu import run_without_amx, use_ops  # noqa: E402
from sglang_layered_kernels.cpu.quantized import Activations  # noqa: E402

from family_checks import NUM_OUTPUTS, chunks_of, hugging_face, run, sequential  # noqa: E402
from family_run import close  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from prompts import prompt  # noqa: E402

GROUP_TOKENS, CHUNK_TOKENS, UNEVEN_GROUPS, LONGEST, NUM_LAYERS = 64, 128, 2, 3, 3


@dataclass(frozen=True)
class Case:
    """A quantized tiny model and how it is computed."""

    method: str
    arch: str = "qwen3_moe"
    activations: Activations = Activations.KEPT
    in_float64: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


GPT_OSS = {"moe_runner_backend": "triton"}
FLOAT64_ATTENTION = {"attention_backend": "torch_native"}  # in which `use_ops` puts it
CASES = {
    "fp8-block": Case("fp8-block"),
    "gptq": Case("gptq"),
    "awq": Case("awq"),
    "mxfp4": Case("mxfp4", "gpt_oss", flags=GPT_OSS),
    "w8a8-int8": Case("w8a8-int8", in_float64=True),
    "fp8-block, activations by group": Case(
        "fp8-block", activations=Activations.TOKEN_GROUPS, in_float64=True
    ),
    "fp8, one scale for all rows": Case("fp8-block", activations=Activations.ALL_ROWS, in_float64=True),
}


@dataclass
class Seen:
    """What was seen of a case; `equal_*` say whether all tokens were the oracle's."""

    methods: list[str]
    equal_stock: dict[str, bool]
    equal_after_drops: dict[int, bool]
    group_sizes: dict[str, list[int]]
    cached_tokens: int
    num_chunks: int
    equal_alone: bool = False
    equal_hugging_face: bool = False


def asked_for() -> list[list[int]]:
    """Seven prompts of 1 to 300 tokens; the fifth starts as the third."""
    made = [prompt(length, index) for index, length in enumerate((12, 100, 70, 300, 0, 1, 40))]
    made[4] = made[2] + prompt(40, 44)
    return made


def check(case: Case) -> Seen:
    use_ops(case.activations, in_float64=case.in_float64)
    model = quantized_model(case.arch, case.method, num_layers=NUM_LAYERS)
    stepped = SteppedScheduler(
        model,
        max_total_tokens=4000,
        layered_group_tokens=GROUP_TOKENS,
        chunked_prefill_size=CHUNK_TOKENS,
        **case.flags,
        **(FLOAT64_ATTENTION if case.in_float64 else {}),
    )
    asked = asked_for()
    stock = run(stepped, asked, layered_prefill=0)
    assert not any(step.kind == "layered" for step in stock.steps)
    runs = {
        "groups": run(stepped, asked, layered_prefill=1),
        "uneven": run(stepped, asked, layered_num_groups=UNEVEN_GROUPS),
        "one layer a group": run(stepped, asked, layered_num_groups=NUM_LAYERS),
    }
    with sequential(stepped):
        runs["sequential"] = run(stepped, asked, layered_num_groups=UNEVEN_GROUPS)
    seen = Seen(
        methods=quantized_by(stepped),
        equal_stock={name: one.tokens == stock.tokens for name, one in runs.items()},
        equal_after_drops={
            group: after_a_drop(stepped, asked, group) == [stock.tokens[1], stock.tokens[LONGEST]]
            for group in range(1, NUM_LAYERS)
        },
        group_sizes={
            name: sorted({step.group.num_layers for step in one.steps if step.group is not None})
            for name, one in runs.items()
        },
        cached_tokens=runs["uneven"].cached_tokens,
        num_chunks=chunks_of(runs["uneven"], runs["uneven"].rids[LONGEST]),
    )
    if case.in_float64:
        seen.equal_alone = one_by_one(stepped, asked) == stock.tokens
    else:  # Hugging Face answers alone, and quantizes no activations
        twin = quantized_model(case.arch, case.method, num_layers=NUM_LAYERS, dequantized=True)
        seen.equal_hugging_face = hugging_face(twin, asked) == stock.tokens
    return seen


def quantized_by(stepped: SteppedScheduler) -> list[str]:
    """The classes that compute the layers of the model: no plain one may stand in for a quantized one."""
    model = stepped.scheduler.tp_worker.model_runner.model
    methods = {
        type(module.quant_method).__name__
        for name, module in model.named_modules()
        if name.endswith((".experts", ".qkv_proj", ".o_proj"))
    }
    return sorted(methods)


def after_a_drop(stepped: SteppedScheduler, asked: list[list[int]], group: int) -> list[list[int]]:
    """A prompt leaves before its `group`-th group beside a request that decodes; then it is asked again."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 1, "layered_num_groups": NUM_LAYERS})
    stays = stepped.send(asked[1], NUM_OUTPUTS)
    stepped.step(3)
    leaves = stepped.send(asked[LONGEST], NUM_OUTPUTS)
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.abort(leaves)
    stepped.step(2)
    again = stepped.send(asked[LONGEST], NUM_OUTPUTS)
    return stepped.finish(stays, again)


def one_by_one(stepped: SteppedScheduler, asked: list[list[int]]) -> list[list[int]]:
    """SGLang's own scheduling with nothing beside a request."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 0})
    outputs = []
    for tokens in asked:
        outputs += stepped.finish(stepped.send(tokens, NUM_OUTPUTS))
        stepped.drain()
    return outputs


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
def main(out: Path, names: tuple[str, ...]) -> None:
    """Check the cases NAMES (all without any) and write what was seen to OUT."""
    run_without_amx()
    results: dict[str, Any] = {}
    for name in names or CASES:
        started_s = time.monotonic()
        try:
            results[name] = asdict(check(CASES[name]))
        except Exception:
            results[name] = {"error": traceback.format_exc()}
        close()
        print(f"{name}: {time.monotonic() - started_s:.1f} s", file=sys.stderr)
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
