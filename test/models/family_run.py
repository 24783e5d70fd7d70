"""Checks families one after another in this process and writes what was seen as JSON; see --help."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # the slots of sliding-window pools come from a Triton kernel
# Short convolutions keep their last inputs in bfloat16 by default, whatever the model's type: then the tokens
# are not Hugging Face's, and depend on where a prompt is cut.
os.environ["SGLANG_MAMBA_CONV_DTYPE"] = "float32"
sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from tiny_models import tiny_model, use_the_cpu  # noqa: E402

use_the_cpu()

import click  # noqa: E402
from sglang.kernels.ops.attention.fla.layernorm_gated import RMSNorm as RMSNormGated  # noqa: E402
from sglang.srt.distributed.parallel_state import (  # noqa: E402
    destroy_distributed_environment,
    destroy_model_parallel,
)
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS  # noqa: E402
from sglang.srt.layers.moe import fused_moe_native  # noqa: E402
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput  # noqa: E402
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod  # noqa: E402
from sglang.srt.models import ernie4, gemma4_causal, llama4, qwen2_moe  # noqa: E402
from sglang.srt.runtime_context import reset_context  # noqa: E402
from sglang_layered_kernels.cpu.gated_delta import fused_rmsnorm_gated_cpu  # noqa: E402
from sglang_layered_kernels.cpu.reference_attention import ReferenceAttention  # noqa: E402
from sglang_layered_kernels.cpu.shared_expert import fused_gate_sigmoid_mul_add  # noqa: E402
from sglang_layered_kernels.cpu.weighted_input import weighting_input  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from family_checks import CHUNK_TOKENS, GROUP_TOKENS, check_family  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from sglang_layered.models.layer_shapes import read_layer_shapes  # noqa: E402
from sglang_layered_lab.models.catalogue import ARCHS  # noqa: E402

# Families that SGLang's torch attention cannot serve or gets wrong, on a CPU reference in another's place.
ON_REFERENCE = {
    "gpt_oss": {"moe_runner_backend": "triton"},
    "gemma2": {},
    "exaone_moe": {},
    "llama4": {"disable_hybrid_swa_memory": True},
    "deepseek_v2": {},
    "deepseek_v3": {},
    "gemma4": {"disable_hybrid_swa_memory": True},
    "gemma4_moe": {"disable_hybrid_swa_memory": True},
}

# Without a limit the pool of states takes most of the machine's memory.
FEW_STATES = {"max_mamba_cache_size": 64}
# On a CPU SGLang keeps states for its prefix cache this way only, without overlap.
RECURRENT = {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True, **FEW_STATES}
FLAGS: dict[str, dict[str, Any]] = {"qwen3_next": RECURRENT, "qwen3_5_moe": RECURRENT}


def check(arch: str, turns: int) -> dict[str, Any]:
    flags = {"attention_backend": "triton", **ON_REFERENCE[arch]} if arch in ON_REFERENCE else {}
    flags |= FLAGS.get(arch, {})
    model = tiny_model(arch)
    flags["enable_expert_traffic_metrics"] = has_experts(model)
    stepped = SteppedScheduler(
        model,
        max_total_tokens=4000,
        layered_group_tokens=GROUP_TOKENS,
        chunked_prefill_size=CHUNK_TOKENS,
        **flags,
    )
    result = check_family(arch, model, stepped)
    for turn in range(1, turns):
        result.also(check_family(arch, model, stepped, turn))
    return result.as_dict()


def has_experts(model: Path) -> bool:
    config = AutoConfig.from_pretrained(model)
    return any(layer.num_experts for layer in read_layer_shapes(config.get_text_config()))


def use_references() -> None:
    """Put our references in the place of what SGLang gets wrong or lacks on a CPU."""
    ATTENTION_BACKENDS["triton"] = ReferenceAttention
    qwen2_moe.fused_gate_sigmoid_mul_add = fused_gate_sigmoid_mul_add
    RMSNormGated.forward = lambda norm, x, z=None: fused_rmsnorm_gated_cpu(x, norm.weight, z, norm.eps)
    fused_moe_native.moe_forward_native = weighting_input(fused_moe_native.moe_forward_native)
    experts = UnquantizedFusedMoEMethod
    experts.forward_cpu = experts.forward_native = experts_of_any_activation
    gemma4_causal.Gemma4Router.fuse_scale = fuse_scale
    # What these two do on another device without CUDA's kernels is right on a CPU too: a router's bias of one
    # dimension, which the top-k takes; and rotated queries and keys, which a CPU returns, not in place.
    ernie4._is_npu = llama4._is_npu = True


def experts_of_any_activation(method: Any, layer: Any, dispatch_output: Any) -> StandardCombineInput:
    """SGLang's experts for a CPU, which know GELU too; it asks them for SiLU alone."""
    rows, chosen = dispatch_output.hidden_states, dispatch_output.topk_output
    output = fused_moe_native.moe_forward_native(layer, rows, chosen, method.moe_runner_config)
    return StandardCombineInput(hidden_states=output)


def fuse_scale(router: Any, fuse: Callable[[Any], None] = gemma4_causal.Gemma4Router.fuse_scale) -> None:
    """SGLang's own puts the router's scale into its norm, which leaves it out on a CPU and not with CUDA."""
    fuse(router)
    router.norm.with_scale = True


def close() -> None:
    """Forget SGLang's global state, so that the next family starts as in a new process."""
    destroy_model_parallel()
    destroy_distributed_environment()
    reset_context()
    gc.collect()


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("archs", nargs=-1)
@click.option("--turns", default=1, show_default=True, help="How many sets of prompts; many for a long run.")
def main(out: Path, archs: tuple[str, ...], turns: int) -> None:
    """Check the families ARCHS (all without any) and write what was seen to OUT."""
    use_references()
    results = {}
    for arch in archs or ARCHS:
        started_s = time.monotonic()
        try:
            results[arch] = check(arch, turns)
        except Exception:
            results[arch] = {"arch": arch, "error": traceback.format_exc()}
        close()
        print(f"{arch}: {time.monotonic() - started_s:.1f} s", file=sys.stderr)
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
