"""Models the stages serve: published shapes with dummy weights, and small ones made on the spot."""

from __future__ import annotations

from pathlib import Path

from sglang_layered.errors import GpuHostError
from sglang_layered.gpu.profiles import Profile


def model_of(profile: Profile, folder: Path) -> Path:
    """The profile's model; without one of its own, the tiny model, made in `folder`."""
    if profile.model_path is None:
        return small_model("tiny", folder)
    if not (profile.model_path / "config.json").exists():
        raise GpuHostError(
            f"{profile.model_path} has no config.json; run this in the checkout (TARGET/project)"
        )
    return profile.model_path


def small_model(preset: str, folder: Path) -> Path:
    """Make a model with random weights: `tiny` (float32) or `demo` (bf16, 1.1 B parameters)."""
    from sglang_layered.models import make_model

    return make_model("qwen3_moe", preset, folder / "models" / preset)
