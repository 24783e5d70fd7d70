"""Finds what can be read on this machine, or what the user puts in its place."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_layered.core.lookup import find_factory
from sglang_layered.energy.nvml import find_gpus
from sglang_layered.energy.rapl import POWERCAP, find_packages
from sglang_layered.energy.sources import Found

SOURCES_VARIABLE = "SGLANG_LAYERED_ENERGY_SOURCES"
ENTRY_POINT_GROUP = "sglang_layered.energy_sources"


def find_sources(
    gpu_ids: Sequence[int] | None,
    powercap: Path = POWERCAP,
    *,
    environ: Mapping[str, str] = os.environ,
    pynvml: Any | None = None,
) -> Found:
    """Every energy source of this machine, each read once, and why the others are missing.

    `gpu_ids` are NVML indices (see `nvml_indices`): None means all, an empty sequence no GPU. `pynvml` stands
    in for the module. With SGLANG_LAYERED_ENERGY_SOURCES set, the sources of that function and no others.

    Raises:
        ConfigError: the function cannot be found, or says so.
    """
    if name := environ.get(SOURCES_VARIABLE):
        where = f"{SOURCES_VARIABLE}={name}"
        own = find_factory("energy source", name, where=where, group=ENTRY_POINT_GROUP, shipped={})
        return Found(tuple(own()))
    gpus = Found() if gpu_ids is not None and not gpu_ids else find_gpus(gpu_ids, pynvml)
    packages = find_packages(powercap)
    return Found(gpus.sources + packages.sources, gpus.missing + packages.missing)
