"""Write a calibrated copy of a model folder, or of its config for dummy weights: all or nothing."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.models.make import MARKER, partial_folder, put_in_place, record_of_ours
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
    if record_of_ours(out, RECORD_NAME, MADE_BY) is not None and not force:
        raise ModelRecipeError(f"--out {out} holds a calibrated model; --force replaces it")


def write_calibrated(
    model_dir: Path, out: Path, calibration: "Calibration", *, force: bool = False, dummy: bool = False
) -> None:
    """Copy the folder with the bias in its weights; at most one file's tensors are in memory.

    With `dummy` the folder has a config alone, and a server fills dummy weights by the bias. recipe.json
    stays behind, because the copy is not the model that make-model makes; router_bias.json, written last,
    holds its recipe.

    Raises:
        ModelRecipeError: the calibration is out of tolerance, or --out is taken or cannot be written.
    """
    calibration.check()
    check_out(out, force=force)
    target = out.resolve()
    files = [path for path in sorted(model_dir.iterdir()) if path.is_file() and path.name != MARKER]
    weights = [path for path in files if path.suffix == ".safetensors"]
    with partial_folder(target, 0 if dummy else sum(path.stat().st_size for path in weights)) as partial:
        for path in files:
            if path not in weights:
                shutil.copyfile(path, partial / path.name)
        if not dummy:
            edited: Counter[str] = Counter()
            for path in weights:
                edited += _write_weights(path, partial / path.name, calibration)
            _check_edited(model_dir, edited, calibration)
        record = calibration_record(model_dir, calibration) | ({WEIGHTS: DUMMY} if dummy else {})
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        put_in_place(partial, target)


def calibration_record(model_dir: Path, calibration: "Calibration") -> dict[str, Any]:
    """Return what router_bias.json says: the model it was made of, the bias, coverage before and after."""
    try:
        made_of = json.loads((model_dir / MARKER).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):  # a folder that make-model did not make
        made_of = None
    return {"made_by": MADE_BY, "format": 1, "made_of": made_of, **calibration.as_dict()}


def _write_weights(source: Path, target: Path, calibration: "Calibration") -> Counter[str]:
    from safetensors.torch import load_file

    from sglang_layered_lab.models.checkpoint import write_file
    from sglang_layered_lab.models.router_apply import apply_bias

    weights = load_file(source)
    edited = apply_bias(weights, calibration.bias)
    write_file(weights, target, like=source)
    return edited


def _check_edited(model_dir: Path, edited: Counter[str], calibration: "Calibration") -> None:
    found = {kind: edited[kind] for kind in ("embedding", "head", "router")}
    if found != {"embedding": 1, "head": 1, "router": len(calibration.bias.unit_of_layer)}:
        raise ModelRecipeError(f"MODEL_DIR {model_dir} has other weights than the model that loads: {found}")
