"""Checks quantized models one after another in this process and writes what was seen as JSON; see --help."""

from __future__ import annotations

import os
import sys
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

from case_by_case import check_all  # noqa: E402
from family_checks import hugging_face  # noqa: E402
from family_run import close  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from quantized_checks import FLAGS, NUM_LAYERS, Seen, asked_for, check_ways, compare_alone  # noqa: E402


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
}


def check(case: Case) -> Seen:
    use_ops(case.activations, in_float64=case.in_float64)
    model = quantized_model(case.arch, case.method, num_layers=NUM_LAYERS)
    flags = {**FLAGS, **case.flags, **(FLOAT64_ATTENTION if case.in_float64 else {})}
    stepped = SteppedScheduler(model, **flags)
    asked = asked_for()
    seen, stock = check_ways(stepped, asked)
    if case.in_float64:
        compare_alone(seen, stepped, asked, stock)
    else:  # Hugging Face answers alone, and quantizes no activations
        twin = quantized_model(case.arch, case.method, num_layers=NUM_LAYERS, dequantized=True)
        seen.equal_hugging_face = hugging_face(twin, asked) == stock.tokens
    return seen


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1)
def main(out: Path, names: tuple[str, ...]) -> None:
    """Check the cases NAMES (all without any) and write what was seen to OUT."""
    run_without_amx()
    check_all(out, names or CASES, lambda name: asdict(check(CASES[name])), close)


if __name__ == "__main__":
    main()
