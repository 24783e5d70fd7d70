"""The tiny models that tests share, made once and kept; and how a process serves them without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

from sglang_layered.cpu_kernels import cuda_driver_available
from sglang_layered.errors import ModelRecipeError

MODELS = Path(__file__).resolve().parent.parent / "out" / "test-models"


def tiny_model(arch: str) -> Path:
    """The folder of a family's tiny model."""
    from sglang_layered_lab.models import make_model

    try:
        return make_model(arch, "tiny", MODELS / arch)
    except ModelRecipeError:  # one of an older recipe
        return make_model(arch, "tiny", MODELS / arch, force=True)


def use_the_cpu() -> None:
    """What SGLang must find in the environment before it is imported."""
    if not cuda_driver_available():
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
