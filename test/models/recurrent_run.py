"""Checks what happens to the states of a family's cohorts, and writes what was seen as JSON; see --help."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from families_on_cpu import FLAGS, use_references
from family_run import CHUNK_TOKENS, close, further_slots

use_references()

import click  # noqa: E402
from sglang.srt.runtime_context import get_schedule  # noqa: E402
from tiny_models import tiny_model  # noqa: E402

from harness import SteppedScheduler  # noqa: E402
from recurrent_checks import Seen, check_states  # noqa: E402


def check_own_slots(arch: str) -> Seen:
    """A request's states become those of the prefix cache (no_buffer), without overlap."""
    stepped = scheduler(arch)
    return check_states(stepped, (1, stepped.num_layers - 1))


def check_further_slots(arch: str) -> Seen:
    """Its states are kept in further slots on the way (extra_buffer), with overlap."""
    stepped = scheduler(arch, **further_slots())
    # With Mamba2 layers SGLang files right states for the first prompt of a batch alone.
    assert (get_schedule().prefill_max_requests == 1) == (arch == "nemotron_h")
    return check_states(stepped, range(1, stepped.num_layers))


def check_no_slots(arch: str) -> Seen:
    """Nothing keeps its states (no prefix cache), with overlap: for families without the above."""
    stepped = scheduler(arch, disable_radix_cache=True, disable_overlap_schedule=False)
    return check_states(stepped, range(1, stepped.num_layers))


def scheduler(arch: str, **flags: Any) -> SteppedScheduler:
    size = {"max_total_tokens": 4000, "chunked_prefill_size": CHUNK_TOKENS}
    return SteppedScheduler(tiny_model(arch), **FLAGS[arch] | size | flags)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("archs", nargs=-1)
def main(out: Path, archs: tuple[str, ...]) -> None:
    """Check the families ARCHS and write what was seen to OUT."""
    results: dict[str, dict[str, Any]] = {arch: {} for arch in archs}
    for arch, is_overlapped in product(archs, (False, True)):
        name, check = "no_buffer", check_own_slots
        if is_overlapped and arch == "lfm2_moe":
            name, check = "no_cache", check_no_slots
        elif is_overlapped:
            name, check = "extra_buffer", check_further_slots
        results[arch][name] = asdict(check(arch))
        close()
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
