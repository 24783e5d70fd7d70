"""Write a calibrated copy of a model folder, or of its config for dummy weights: all or nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.make import MARKER
from sglang_layered_lab.models.partial_folder import partial_folder, put_in_place
from sglang_layered_lab.models.router_topics import RECORD_NAME

if TYPE_CHECKING:
    from sglang_layered_lab.models.router_calibrate import Calibration

MADE_BY = "sglang-layered calibrate-router"
WEIGHTS, DUMMY = "weights", "dummy"  # a key of the record, and its value where the folder has no weights


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a place that is taken, before any work is done.

    Raises:
        ModelRecipeError: it names --out. With `force` a model that this command made may be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not _is_ours(out):
        raise ModelRecipeError(f"--out {out} exists and was not made by this command; choose another --out")
    if not force:
        raise ModelRecipeError(f"--out {out} holds a calibrated model; --force replaces it")


def write_calibrated(model_dir: Path, out: Path, calibration: Calibration, *, force: bool = False) -> None:
    """Copy the folder with the bias in its weights; at most one file's tensors are in memory.

    recipe.json stays behind, because the copy is not the model that make-model makes; router_bias.json,
    written last, holds its recipe.

    Raises:
        ModelRecipeError: the calibration is out of tolerance, or --out is taken or cannot be written.
    """
    calibration.check()
    check_out(out, force=force)
    target = out.resolve()
    weight_bytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    with partial_folder(target, weight_bytes) as partial:
        edited: Counter[str] = Counter()
        for path in sorted(model_dir.iterdir()):
            if path.suffix == ".safetensors":
                edited += _write_weights(path, partial / path.name, calibration)
            elif path.is_file() and path.name != MARKER:
                shutil.copyfile(path, partial / path.name)
        _check_edited(model_dir, edited, calibration)
        record = calibration_record(model_dir, calibration)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        put_in_place(partial, target)


def write_dummy(model_dir: Path, out: Path, calibration: Calibration, *, force: bool = False) -> None:
    """Copy a folder that has a config and no weights, with the bias for a server to fill dummy weights by.

    Raises:
        ModelRecipeError: the calibration is out of tolerance, or --out is taken or cannot be written.
    """
    calibration.check()
    check_out(out, force=force)
    target = out.resolve()
    with partial_folder(target, 0) as partial:
        for path in sorted(model_dir.iterdir()):
            if path.is_file() and path.suffix != ".safetensors" and path.name != MARKER:
                shutil.copyfile(path, partial / path.name)
        record = calibration_record(model_dir, calibration) | {WEIGHTS: DUMMY}
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        put_in_place(partial, target)


def calibration_record(model_dir: Path, calibration: Calibration) -> dict[str, Any]:
    """Return what router_bias.json says: the model it was made of, the bias, coverage before and after."""
    try:
        made_of = json.loads((model_dir / MARKER).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):  # a folder that make-model did not make
        made_of = None
    return {"made_by": MADE_BY, "format": 1, "made_of": made_of, **calibration.as_dict()}


def _write_weights(source: Path, target: Path, calibration: Calibration) -> Counter[str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    from sglang_layered_lab.models.router_apply import apply_bias

    try:
        weights = load_file(source)
        edited = apply_bias(weights, calibration.bias)
        save_file(weights, target, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{source.name}: {error}") from error
    shutil.copymode(source, target)
    return edited


def _check_edited(model_dir: Path, edited: Counter[str], calibration: Calibration) -> None:
    found = {kind: edited[kind] for kind in ("embedding", "head", "router")}
    if found != {"embedding": 1, "head": 1, "router": len(calibration.bias.unit_of_layer)}:
        raise ModelRecipeError(f"MODEL_DIR {model_dir} has other weights than the model that loads: {found}")


def _is_ours(out: Path) -> bool:
    try:
        made_by = json.loads((out / RECORD_NAME).read_text(encoding="utf-8")).get("made_by")
    except (OSError, ValueError, AttributeError):
        return False
    return bool(made_by == MADE_BY)
