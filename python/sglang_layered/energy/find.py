"""Finds what can be read on this machine, or what a replay file puts in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_layered.energy.nvml import find_gpus
from sglang_layered.energy.rapl import POWERCAP, find_packages
from sglang_layered.energy.replay import REPLAY_VARIABLE, load_replay
from sglang_layered.energy.sources import Found


def find_sources(
    gpu_ids: Sequence[int] | None,
    powercap: Path = POWERCAP,
    *,
    environ: Mapping[str, str] = os.environ,
    pynvml: Any | None = None,
) -> Found:
    """Every energy source of this machine, each read once, and why the others are missing.

    `gpu_ids` are NVML indices (see `nvml_indices`): None means all, an empty sequence no GPU. `pynvml` stands
    in for the module. With SGLANG_LAYERED_ENERGY_REPLAY set, the sources of that file and no others.

    Raises:
        ConfigError: the replay file cannot be used.
    """
    if replay := environ.get(REPLAY_VARIABLE):
        return Found(sources=load_replay(Path(replay)))
    gpus = Found() if gpu_ids is not None and not gpu_ids else find_gpus(gpu_ids, pynvml)
    packages = find_packages(powercap)
    return Found(gpus.sources + packages.sources, gpus.missing + packages.missing)
