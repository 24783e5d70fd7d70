"""Models the stages serve: published shapes with dummy weights, and small ones made on the spot."""

from __future__ import annotations

from pathlib import Path

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu.profiles import Profile
from sglang_layered_lab.models.router_dummy import FILLED, PACKAGE, is_dummy
from sglang_layered_lab.models.router_topics import TokenRange, topics_of


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
    from sglang_layered_lab.models import make_model

    return make_model("qwen3_moe", preset, folder / "models" / preset)


def environment_of(model: Path) -> dict[str, str]:
    """What a server's environment needs so that dummy weights route as the folder says."""
    return PACKAGE if is_dummy(model) else {}


def topics(model: Path) -> tuple[TokenRange, ...]:
    """Ranges of token ids that a prompt keeps to one of; none for a model that knows no topics."""
    return topics_of(model) or ()


def check_routers(model: Path, log: Path) -> None:
    """Refuse a server that left its dummy weights as they were: SGLang only warns of a failed import.

    Raises:
        GpuHostError: its log does not say that routers were filled.
    """
    if is_dummy(model) and FILLED not in log.read_text(errors="replace"):
        raise GpuHostError(f"{log} does not say '{FILLED}': look for 'Ignore import error' there")
