"""Checks families one after another in this process and writes what was seen as JSON; see --help."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "runner"), str(Path(__file__).parents[1])]

from families_on_cpu import FEW_STATES, FLAGS, use_references  # noqa: E402

# isort: split
import click  # noqa: E402
import pytest  # noqa: E402
from lora_models import leave_memory_unpinned  # noqa: E402
from sglang.srt.distributed.parallel_state import (  # noqa: E402
    destroy_distributed_environment,
    destroy_model_parallel,
)
from sglang.srt.runtime_context import reset_context  # noqa: E402
from tiny_models import tiny_model  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from case_by_case import check_all  # noqa: E402
from family_checks import CHUNK_TOKENS, DEFINED, GROUP_TOKENS, check_family  # noqa: E402
from harness import SteppedScheduler  # noqa: E402
from release_differences import let_states_be_kept  # noqa: E402
from sglang_layered.models.layer_shapes import read_layer_shapes  # noqa: E402
from sglang_layered_lab.models.catalogue import ARCHS  # noqa: E402


def further_slots() -> dict[str, Any]:
    """Flags with which states are kept in further slots on the way (extra_buffer), as on a GPU by default.

    SGLang allows it with CUDA's kernels alone, and pins memory for it. Our references keep the states too.
    """
    let_states_be_kept(pytest.MonkeyPatch())  # for as long as this process lives
    leave_memory_unpinned()
    flags = {"mamba_radix_cache_strategy": "extra_buffer", "disable_overlap_schedule": False}
    return flags | FEW_STATES


def check(arch: str, turns: int) -> dict[str, Any]:
    flags = dict(FLAGS.get(arch, {}))
    model = tiny_model(arch)
    flags["enable_expert_traffic_metrics"] = has_experts(arch, model)
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


def has_experts(arch: str, model: Path) -> bool:
    config = AutoConfig.from_pretrained(model)
    return arch in DEFINED or any(layer.num_experts for layer in read_layer_shapes(config.get_text_config()))


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
    check_all(out, archs or ARCHS, lambda arch: check(arch, turns), close)


if __name__ == "__main__":
    main()
