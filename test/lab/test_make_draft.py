"""`make-draft`: drafts fit their targets, models that transformers loads and whose layers all matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.cli.make_draft import make_draft as command
from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.make import make_from_recipe
from sglang_layered_lab.models.recipe import DRAFTABLE

torch = pytest.importorskip("torch", reason="the models are made with it")
transformers = pytest.importorskip("transformers", reason="the models are made with it")

from safetensors.torch import load_file  # noqa: E402

from sglang_layered_lab.models.drafts import MTP, make_draft  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_LAYERS = 3
RECURRENT = ("qwen3_next", "qwen3_5_moe", "nemotron_h")
NUM_RECURRENT_LAYERS = 5  # the fourth is the first with attention


@pytest.fixture(scope="module", params=DRAFTABLE)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / request.param
    num_layers = NUM_RECURRENT_LAYERS if request.param in RECURRENT else NUM_LAYERS
    make_from_recipe(find_recipe(request.param, "tiny", num_layers=num_layers, draftable=True), folder)
    return folder


def load(folder: Path) -> Any:
    has_encoder = hasattr(transformers.AutoConfig.from_pretrained(folder), "text_config")
    auto = transformers.AutoModelForImageTextToText if has_encoder else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder)


def layers_of(model: Any) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith("layers"))


def test_every_layer_changes_tokens(target: Path) -> None:
    """Of prompts of 30 random tokens, in one that adds nothing in a layer."""
    model = load(target)
    rows = torch.randint(3, 1000, (6, 30), generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def tokens() -> torch.Tensor:
        return model(rows).logits.argmax(-1)

    expected = tokens()
    for layer in layers_of(model):
        forward = layer.forward
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        changed = (tokens() != expected).float().mean()
        layer.forward = forward
        assert changed > 0.05


def test_a_standalone_draft_guesses_every_other_token(target: Path, tmp_path: Path) -> None:
    make_draft("standalone", target, tmp_path / "draft")
    models = [load(path) for path in (target, tmp_path / "draft")]
    rows = torch.randint(3, 1000, (6, 60), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        guessed, expected = (model(rows).logits.argmax(-1) for model in models)
    assert 0.25 < (guessed == expected).float().mean() < 0.95


def test_a_draft_is_made_once_and_of_a_draftable_model(target: Path, tmp_path: Path) -> None:
    out = tmp_path / "draft"
    options = ["--kind", "eagle", "--target", str(target), "--out", str(out)]
    first, second = (CliRunner().invoke(command, options) for _ in range(2))
    assert "made" in first.output and "already there" in second.output
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLMEagle"]
    assert load_file(out / "model.safetensors")["fc.weight"].shape == (128, 256)
    with pytest.raises(ModelRecipeError, match=r"--out .* holds another draft"):
        make_draft("eagle3", target, out)
    plain = tmp_path / "plain"
    make_from_recipe(find_recipe("llama", "tiny", num_layers=1), plain)
    with pytest.raises(ModelRecipeError, match=r"--target .* make-model --draftable"):
        make_draft("eagle", plain, tmp_path / "other")


def test_an_mtp_layer_is_of_the_targets_family(target: Path, tmp_path: Path) -> None:
    if json.loads((target / "config.json").read_text())["model_type"] not in MTP:
        with pytest.raises(ModelRecipeError, match=r"deepseek_v3, .*nemotron_h"):
            make_draft("mtp", target, tmp_path / "mtp")
        return
    make_draft("mtp", target, tmp_path / "mtp")
    before, after = (load_file(path / "model.safetensors") for path in (target, tmp_path / "mtp"))
    added = [name for name in after if name not in before]
    assert added and all(
        name.startswith((f"model.layers.{NUM_LAYERS}.", "model.mtp_", "mtp.")) for name in added
    )
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_only_some_models_are_draftable() -> None:
    with pytest.raises(ModelRecipeError, match=r"--draftable is for .*qwen3_moe"):
        find_recipe("llama", "tiny", draftable=True)
