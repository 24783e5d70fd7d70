"""From a recipe to a finished folder: all or nothing.

The folder is filled under a hidden name beside its place and renamed at the end, so a killed run leaves at
most a hidden `.NAME.partial-*` folder that can be deleted, never half a model. recipe.json, written last,
marks a folder as ours and complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.catalogue import Recipe, find_recipe
from sglang_layered_lab.models.hf_config import generation_config, model_config
from sglang_layered_lab.models.partial_folder import partial_folder, put_in_place
from sglang_layered_lab.models.recipe import DTYPE_BYTES, RECIPE_FORMAT, ModelRecipe
from sglang_layered_lab.models.tensors import count_parameters

MARKER = "recipe.json"
MADE_BY = "sglang-layered make-model"


def make_model(
    arch: str,
    preset: str,
    out: Path,
    seed: int = 0,
    dtype: str | None = None,
    num_layers: int | None = None,
    force: bool = False,
) -> Path:
    """Make the model folder `out`, or find it already there, and return its absolute path."""
    recipe = find_recipe(arch, preset, seed=seed, dtype=dtype, num_layers=num_layers)
    make_from_recipe(recipe, out, force=force)
    return Path(out).resolve()


def num_parameters_of(recipe: Recipe) -> int:
    """Parameters of the model; of a family, transformers counts them."""
    if isinstance(recipe, ModelRecipe):
        return count_parameters(recipe)
    from sglang_layered_lab.models.family_weights import count_family_parameters

    return count_family_parameters(recipe)


def num_bytes_of(recipe: Recipe) -> int:
    """Bytes of all weights, without the headers of the files."""
    return num_parameters_of(recipe) * DTYPE_BYTES[recipe.dtype]


def make_from_recipe(
    recipe: Recipe,
    out: Path,
    *,
    force: bool = False,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> bool:
    """Write the model and return True; return False when the same model is already complete there.

    `on_progress` gets the number of bytes of each tensor as it is made.
    """
    target = Path(out).resolve()
    if _is_already_there(recipe, target, force=force):
        return False
    with partial_folder(target, num_bytes_of(recipe)) as partial:
        _write_model(recipe, partial, on_progress)
        if _is_already_there(recipe, target, force=force):  # another process was quicker
            return False
        put_in_place(partial, target)
    return True


def _write_model(recipe: Recipe, folder: Path, on_progress: Callable[[int], object]) -> None:
    from sglang_layered_lab.models.tokenizer import write_tokenizer

    if isinstance(recipe, ModelRecipe):
        from sglang_layered_lab.models.checkpoint import write_weights

        _write_json(folder / "config.json", model_config(recipe))
        write_weights(recipe, folder, on_progress)
    else:
        from sglang_layered_lab.models.family_weights import write_family

        write_family(recipe, folder, on_progress)
    _write_json(folder / "generation_config.json", generation_config())
    write_tokenizer(recipe, folder)
    file_bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    _write_json(folder / MARKER, _identity(recipe) | {"file_bytes": file_bytes})


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Return what two folders must share to hold the same model."""
    texts = {
        name: Path(__file__).with_name(name).read_bytes() for name in ("corpus.txt", "chat_template.jinja")
    }
    return {
        "made_by": MADE_BY,
        "format": RECIPE_FORMAT,
        "recipe": recipe.as_dict(),
        "text_sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
    }


def _is_already_there(recipe: Recipe, target: Path, *, force: bool) -> bool:
    """Return whether the model is complete; raise when the place is taken by something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    marker = _read_marker(target)
    if force:
        return False
    if {key: value for key, value in marker.items() if key != "file_bytes"} != _identity(recipe):
        raise ModelRecipeError(
            f"--out {target} holds another model; choose another --out, or --force to replace it"
        )
    damaged = _damaged_files(target, marker)
    if damaged:
        raise ModelRecipeError(
            f"--out {target}: {', '.join(damaged)} changed since it was made; --force remakes it"
        )
    return True


def _read_marker(target: Path) -> dict[str, Any]:
    """Return our marker; a place without one is never touched, not even by --force."""
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        marker = None
    ours = isinstance(marker, dict) and marker.get("made_by") == MADE_BY
    if not ours or not isinstance(marker.get("file_bytes"), dict):
        raise ModelRecipeError(
            f"--out {target} exists and was not made by this command; choose another --out"
        )
    return marker


def _damaged_files(target: Path, marker: dict[str, Any]) -> list[str]:
    """Names of files that are gone or have another size than when they were written."""
    return [
        name
        for name, num_bytes in marker["file_bytes"].items()
        if not (target / name).is_file() or (target / name).stat().st_size != num_bytes
    ]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
