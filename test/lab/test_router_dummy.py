"""Dummy weights with calibrated routers: transformers' own forward judges what a server would fill in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.bench.run import Load, Server
from sglang_layered_lab.bench.spec import spec_from
from sglang_layered_lab.cli.calibrate_router import calibrate_router
from sglang_layered_lab.models import make_model
from sglang_layered_lab.models.router_coverage import draws_for, measure
from sglang_layered_lab.models.router_targets import read_targets
from sglang_layered_lab.models.router_topics import topics_of

torch = pytest.importorskip("torch", reason="the models are made with it")
pytest.importorskip("transformers", reason="the models are made with it")

from sglang_layered_lab.models.router_dummy import PACKAGE, bias_of, fill, is_dummy  # noqa: E402
from sglang_layered_lab.models.router_record import ProbeSizes, RoutedModel  # noqa: E402

ROWS = [
    {"decode_rows": 4, "coverage": 0.47},
    {"decode_rows": 8, "coverage": 0.6},
    {"decode_rows": 16, "coverage": 0.75},
    {"prompt_tokens": 64, "coverage": 0.8},
]
NUM_LAYERS = 3
REPO = Path(__file__).resolve().parents[2]
DUMMY_SEED, DUMMY_MOST = 1234, 1e-3  # of SGLang's dummy loader


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        "qwen3_moe", "tiny", tmp_path_factory.mktemp("models") / "source", num_layers=NUM_LAYERS
    )


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    """A folder with a config alone, made by the command."""
    shape, out, targets = (source.with_name(name) for name in ("shape", "routed", "targets.json"))
    shape.mkdir()
    (shape / "config.json").write_bytes((source / "config.json").read_bytes())
    targets.write_text(json.dumps({"rows": ROWS}))
    words = [str(shape), "--dummy", "--out", str(out), "--targets", str(targets), "--tolerance", "0.05"]
    result = CliRunner().invoke(calibrate_router, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def filled(source: Path, folder: Path) -> RoutedModel:
    """A model as SGLang's dummy loader leaves it, then as the server fills it."""
    model = RoutedModel(source)
    with torch.no_grad():
        for tensor in model.parameters.values():
            generator = torch.Generator().manual_seed(DUMMY_SEED)
            tensor.uniform_(-DUMMY_MOST, DUMMY_MOST, generator=generator)
    edited = fill(model.parameters, bias_of(folder))
    assert (edited["router"], edited["embedding"], edited["head"]) == (NUM_LAYERS, 1, 1)
    return model


def test_a_filled_model_touches_the_experts_that_were_asked_for(filled: RoutedModel, folder: Path) -> None:
    bias = bias_of(folder)
    sizes = ProbeSizes(num_requests=64, start_tokens=4, num_steps=6, num_prompts=16, prompt_tokens=64)
    seen = filled.record(bias, sizes, seed=9)
    for row in read_targets(folder.with_name("targets.json")).rows:
        states = seen.decode if row.kind == "decode_rows" else seen.prompts
        found = measure(states.chosen, draws_for(row, states, bias.seed))
        assert found.mean == pytest.approx(row.coverage, abs=0.06), row
        assert max(found.by_layer) - min(found.by_layer) < 0.25
    assert seen.stays_in_topic > 0.99


def test_layers_choose_different_experts(filled: RoutedModel, folder: Path) -> None:
    seen = filled.record(bias_of(folder), ProbeSizes(8, 4, 1, 2, 64), seed=9).prompts.chosen
    assert (seen[0] != seen[1]).any(axis=-1).mean() > 0.9


def test_what_a_dummy_loader_leaves_alone_chooses_alike_in_all_layers(source: Path, folder: Path) -> None:
    """The reason for all of this: tensors of one size get the same numbers."""
    model = RoutedModel(source)
    with torch.no_grad():
        for tensor in model.parameters.values():
            tensor.uniform_(-DUMMY_MOST, DUMMY_MOST, generator=torch.Generator().manual_seed(DUMMY_SEED))
    seen = model.record(bias_of(folder), ProbeSizes(8, 4, 1, 2, 64), seed=9).prompts.chosen
    assert (seen[0] == seen[1]).all(axis=-1).mean() > 0.9


def test_a_folder_says_what_its_server_needs(folder: Path, source: Path) -> None:
    assert is_dummy(folder) and not is_dummy(source)
    assert topics_of(folder) and topics_of(source) is None
    assert PACKAGE == {"SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_layered_lab.models.routed_dummy"}
    assert not list(folder.glob("*.safetensors"))
    with pytest.raises(ModelRecipeError, match="calibrate-router --dummy"):
        bias_of(source)


def test_prompts_of_a_sweep_keep_to_one_topic_each(folder: Path) -> None:
    fixed = {"distribution": "fixed", "tokens": 50}
    values = {
        "run": {"name": "topics"},
        "server": {"model": str(folder)},
        "load": {"arrivals": "closed", "num_clients": 1, "num_requests": 10}
        | {"background": {"num_streams": 10, "output_tokens": 9, "prompt_tokens": 50}},
        "workload": {"topics": True, "lengths": {"prompt": fixed, "output": fixed}},
    }
    ranges = topics_of(folder) or ()
    load, server = Load.of(spec_from(values)), Server("http://here", 1024, None, ranges)
    requests = [*load.planned(0, server), *load.background(0, server)]
    held = [
        [bounds for bounds in ranges if all(bounds[0] <= token < bounds[1] for token in each.prompt)]
        for each in requests
    ]
    assert all(len(topics) == 1 for topics in held)
    assert len({topics[0] for topics in held}) > 1


@pytest.mark.parametrize("name", ["qwen3-30b-a3b-routed", "tiny-routed"])
def test_shipped_folders_have_a_bias_within_its_tolerance(name: str) -> None:
    model = REPO / "scripts" / "gpu" / "models" / name
    bias = bias_of(model)
    config = json.loads((model / "config.json").read_text())
    assert (bias.num_experts, bias.vocab_size) == (config["num_experts"], config["vocab_size"])
    assert len(bias.unit_of_layer) == config["num_hidden_layers"]
    rows = json.loads((model / "router_bias.json").read_text())["coverage"]
    assert all(abs(row["off"]) <= 0.03 for row in rows if row["target"]["fit"])


def test_what_a_server_touched_is_what_the_document_says() -> None:
    rows = json.loads((REPO / "results" / "routers" / "2026-11-22-2cores-dummy.json").read_text())["rows"]
    shares = [f"{100 * row['measured']:.1f}" for row in rows]
    text = " ".join((REPO / "docs" / "gpu-host.md").read_text().split())
    assert f"touched {shares[0]}, {shares[1]} and {shares[2]} % of the experts" in text
    assert f"prompts of 512 tokens {shares[3]} %" in text
    assert all(abs(row["measured"] - row["paper"]) < 0.04 for row in rows)
