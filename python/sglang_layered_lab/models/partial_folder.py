"""A model folder that is there whole or not at all: filled under a hidden name, renamed at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sglang_layered.errors import ModelRecipeError

SPARE_BYTES = 64 * 2**20  # tokenizer, headers and a little air on the disk


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
