"""Every model that `make-model` can make, by family and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.families import FAMILIES, FamilyRecipe
from sglang_layered_lab.models.recipe import PRESETS, ModelRecipe

Recipe: TypeAlias = ModelRecipe | FamilyRecipe

CATALOGUE: Mapping[tuple[str, str], Recipe] = MappingProxyType(
    {**PRESETS, **{(recipe.arch, recipe.preset): recipe for recipe in FAMILIES.values()}}
)
ARCHS = tuple(dict.fromkeys(arch for arch, _ in CATALOGUE))
PRESET_NAMES = tuple(dict.fromkeys(preset for _, preset in CATALOGUE))


def find_recipe(
    arch: str, preset: str, *, seed: int = 0, dtype: str | None = None, num_layers: int | None = None
) -> Recipe:
    """Return the preset with the given overrides, or raise a ModelRecipeError that names the option."""
    if arch not in ARCHS:
        raise ModelRecipeError(f"--arch {arch!r} is unknown; choose one of {', '.join(ARCHS)}")
    if preset not in PRESET_NAMES:
        raise ModelRecipeError(f"--preset {preset!r} is unknown; choose one of {', '.join(PRESET_NAMES)}")
    base = CATALOGUE.get((arch, preset))
    if base is None:
        raise ModelRecipeError(
            f"--preset {preset!r} of --arch {arch} is not there; it has --preset tiny only"
        )
    return replace(
        base,
        seed=seed,
        dtype=base.dtype if dtype is None else dtype,
        num_layers=base.num_layers if num_layers is None else num_layers,
    )
