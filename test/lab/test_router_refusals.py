"""What a router cannot be calibrated on is refused by name, and nothing half-written stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.cli.calibrate_router import calibrate_router as command
from sglang_layered_lab.models import make_model
from sglang_layered_lab.models.router_targets import CoverageTable, CoverageTarget

pytest.importorskip("torch", reason="the models are made with it")
pytest.importorskip("transformers", reason="the models are made with it")

from sglang_layered_lab.models import router_checkpoint
from sglang_layered_lab.models.router_calibrate import Calibration, calibrate
from sglang_layered_lab.models.router_checkpoint import write_calibrated

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3_moe", "tiny", tmp_path_factory.mktemp("models") / "source", num_layers=3)


def run(source: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(command, [str(source), "--out", str(out), *options])


def test_a_target_out_of_reach_is_an_error_that_says_the_nearest(source: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"rows": [{"decode_rows": 2, "coverage": 0.9}]}))  # at most 2 * 4 / 16
    result = run(source, tmp_path / "out", "--targets", str(table), "--record", str(tmp_path / "record.json"))
    assert isinstance(result.exception, ModelRecipeError)
    assert "--targets: 2 decode rows should touch 0.900" in str(result.exception)
    (row,) = json.loads((tmp_path / "record.json").read_text())["coverage"]
    assert f"nearest reached is {row['calibrated']['mean']:.3f}" in str(result.exception)
    assert row["calibrated"]["mean"] <= 0.5 and not (tmp_path / "out").exists()


def test_bad_models_are_refused_by_name(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    made = tmp_path / "calibrated"
    write_calibrated(source, made, calibration)
    dense = make_model("llama", "tiny", tmp_path / "dense", num_layers=1)
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    tied = tmp_path / "tied"
    tied.mkdir()
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    for folder, named in (
        (dense, "MODEL_DIR .*'llama'"),
        (broken, "MODEL_DIR .*cannot be loaded"),
        (tied, "MODEL_DIR .*tied"),
        (made, "MODEL_DIR .*calibrated"),
        (tmp_path / "nowhere", "MODEL_DIR .*holds no model"),
    ):
        result = run(folder, tmp_path / "out")
        assert isinstance(result.exception, ModelRecipeError), result.output
        with pytest.raises(ModelRecipeError, match=named):
            raise result.exception
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--topics", "40"], "--topics 40 is too many for the 128 channels"),
        (["--topics", "5000"], "--topics"),
        (["--targets", "long.json"], "--targets asks for 9000 prompt tokens"),
    ],
)
def test_what_the_model_has_no_room_for_is_refused_by_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("long.json").write_text(json.dumps({"rows": [{"prompt_tokens": 9000, "coverage": 0.9}]}))
    result = run(source, tmp_path / "out", *options)
    assert isinstance(result.exception, ModelRecipeError) and named in str(result.exception)


@pytest.fixture(scope="module")
def calibration(source: Path) -> Calibration:
    table = CoverageTable((CoverageTarget("decode_rows", 8, 0.6),))
    return calibrate(source, table, num_topics=4, tolerance=0.5)


def test_a_taken_place_is_refused_and_replaced_only_by_force(
    source: Path, calibration: Calibration, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_calibrated(source, out, calibration)
    with pytest.raises(ModelRecipeError, match=r"--out .*--force"):
        write_calibrated(source, out, calibration)
    (out / "old.txt").write_text("old")
    write_calibrated(source, out, calibration, force=True)
    assert not (out / "old.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("ten years")
    for place in (thesis, thesis / "thesis.txt", thesis / "thesis.txt" / "model"):
        with pytest.raises(ModelRecipeError, match="--out"):
            write_calibrated(source, place, calibration, force=True)
    assert [path.name for path in thesis.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_run_leaves_nothing(
    source: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(router_checkpoint, "_write_weights", fail)
    with pytest.raises((KeyboardInterrupt, ModelRecipeError)):
        write_calibrated(source, tmp_path / "model", calibration)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_those_that_load_are_not_written(
    source: Path, calibration: Calibration, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(source, twice)
    shutil.copyfile(twice / "model.safetensors", twice / "old.safetensors")
    with pytest.raises(ModelRecipeError, match="other weights"):
        write_calibrated(twice, tmp_path / "out", calibration)
    assert [path.name for path in tmp_path.iterdir()] == ["twice"]
