"""From a recipe to a finished folder: all or nothing.

The folder is filled under a hidden name beside its place and renamed at the end, so a killed run leaves at
most a hidden `.NAME.partial-*` folder that can be deleted, never half a model. recipe.json, written last,
marks a folder as ours and complete.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.recipe import DTYPE_BYTES, END_ID, PAD_ID, RECIPE_FORMAT, Recipe
from sglang_layered_lab.models.tensors import is_of_transformers, list_tensors

MARKER = "recipe.json"
MADE_BY = "sglang-layered make-model"
SPARE_BYTES = 64 * 2**20  # tokenizer, headers and a little air on the disk


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
    if is_of_transformers(recipe):
        from sglang_layered_lab.models.checkpoint import empty_model

        return sum(parameter.numel() for parameter in empty_model(recipe).parameters())
    return sum(tensor.num_elements for tensor in list_tensors(recipe))


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
    from sglang_layered_lab.models import checkpoint
    from sglang_layered_lab.models.processor import write_processor
    from sglang_layered_lab.models.tokenizer import write_tokenizer

    if is_of_transformers(recipe):
        checkpoint.write_family(recipe, folder, on_progress)
    else:
        checkpoint.write_config(recipe, folder)
        checkpoint.write_weights(recipe, folder, on_progress)
    if recipe.draftable:
        from sglang_layered_lab.models.draftable import make_draftable

        make_draftable(folder)
    if recipe.quantization is not None:
        from sglang_layered_lab.models.quantize import quantize_folder

        quantize_folder(folder, recipe.quantization, dequantized=recipe.dequantized)
    generation = {"eos_token_id": [END_ID], "pad_token_id": PAD_ID, "do_sample": False}
    checkpoint.write_json(folder / "generation_config.json", generation)
    write_tokenizer(recipe, folder)
    write_processor(recipe, folder)
    file_bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    checkpoint.write_json(folder / MARKER, _identity(recipe) | {"file_bytes": file_bytes})


def _identity(recipe: Recipe) -> dict[str, Any]:
    """Return what two folders must share to hold the same model."""
    template = "chat_template_vision.jinja" if getattr(recipe, "around", {}) else "chat_template.jinja"
    texts = {name: Path(__file__).with_name(name).read_bytes() for name in ("corpus.txt", template)}
    return {
        "made_by": MADE_BY,
        "format": RECIPE_FORMAT,
        "recipe": recipe.as_dict(),
        "text_sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
    }


def _is_already_there(recipe: Recipe, target: Path, *, force: bool) -> bool:
    """Return whether the model is complete; raise when the place is taken by something else."""
    marker = record_of_ours(target, MARKER, MADE_BY)
    if marker is None or force:
        return False
    file_bytes = marker.pop("file_bytes", {})
    if marker != _identity(recipe):
        raise ModelRecipeError(
            f"--out {target} holds another model; choose another --out, or --force to replace it"
        )
    damaged = [
        name
        for name, num_bytes in file_bytes.items()
        if not (target / name).is_file() or (target / name).stat().st_size != num_bytes
    ]
    if damaged:
        raise ModelRecipeError(
            f"--out {target}: {', '.join(damaged)} changed since it was made; --force remakes it"
        )
    return True


def record_of_ours(place: Path, name: str, made_by: str) -> dict[str, Any] | None:
    """Return the record `name` in a folder that a command of ours made, None where the place is free.

    Raises:
        ModelRecipeError: the place has none; it is never touched, not even by --force.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return None
    try:
        record = json.loads((place / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or record.get("made_by") != made_by:
        raise ModelRecipeError(f"--out {place} exists and was not made by this command; choose another --out")
    return record


@contextmanager
def partial_folder(target: Path, weight_bytes: int) -> Iterator[Path]:
    """A hidden folder beside the target that is gone afterwards, with what is left in it.

    Raises:
        ModelRecipeError: the disk has no room for the weights, or the place cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(target.parent).free
        needed_bytes = weight_bytes + SPARE_BYTES
        if free_bytes < needed_bytes:
            raise ModelRecipeError(
                f"--out {target} needs {needed_bytes / 1e9:.1f} GB; {free_bytes / 1e9:.1f} GB are free there"
            )
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise ModelRecipeError(f"--out {target} cannot be written: {error}") from error
    try:
        model = holder / target.name
        model.mkdir()
        yield model
    except OSError as error:
        raise ModelRecipeError(f"--out {target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; a model of ours that is there moves beside `partial`, to be deleted."""
    if target.exists() and any(target.iterdir()):
        target.rename(partial.with_name("replaced"))
    partial.rename(target)
