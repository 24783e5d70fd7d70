"""Every model that `make-model` can make, by family and size, from recipes.toml."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomlkit

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.recipe import ExpertShape, FamilyRecipe, ModelRecipe
from sglang_layered_lab.models.recipe import Recipe as Recipe

MOST_LAYERS = 64  # entries of the lists that say something of each layer


def _sized(row: dict[str, Any]) -> ModelRecipe:
    experts = ExpertShape(**row.pop("experts")) if "experts" in row else None
    return ModelRecipe(**row, experts=experts)


def _family(row: dict[str, Any], shared: Mapping[str, dict[str, Any]]) -> FamilyRecipe:
    fields: dict[str, Any] = {}
    for name in row.pop("shares", ()):
        fields |= shared[name]
    fields |= row.pop("fields", {}) | dict.fromkeys(row.pop("unset", ()))
    for name, values in row.pop("cycle", {}).items():
        fields[name] = list(islice(cycle(values), MOST_LAYERS))
    return FamilyRecipe(**row, fields=fields)


_TABLE = tomlkit.parse(Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")).unwrap()
PRESETS: Mapping[tuple[str, str], ModelRecipe] = MappingProxyType(
    {(recipe.arch, recipe.preset): recipe for recipe in map(_sized, _TABLE["sized"])}
)
FAMILIES: Mapping[str, FamilyRecipe] = MappingProxyType(
    {row["arch"]: _family(row, _TABLE["shared"]) for row in _TABLE["families"]}
)
CATALOGUE: Mapping[tuple[str, str], Recipe] = MappingProxyType(
    {**PRESETS, **{(recipe.arch, recipe.preset): recipe for recipe in FAMILIES.values()}}
)
ARCHS = tuple(dict.fromkeys(arch for arch, _ in CATALOGUE))
PRESET_NAMES = tuple(dict.fromkeys(preset for _, preset in CATALOGUE))


def find_recipe(
    arch: str,
    preset: str,
    *,
    seed: int = 0,
    dtype: str | None = None,
    num_layers: int | None = None,
    quantization: str | None = None,
    dequantized: bool = False,
    draftable: bool = False,
) -> Recipe:
    """Return the preset with the given overrides, or raise a ModelRecipeError that names the option."""
    for option, value, known in (("--arch", arch, ARCHS), ("--preset", preset, PRESET_NAMES)):
        if value not in known:
            raise ModelRecipeError(f"{option} {value!r} is unknown; choose one of {', '.join(known)}")
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
        quantization=quantization,
        dequantized=dequantized,
        draftable=draftable,
    )
