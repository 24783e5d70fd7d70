"""`make-draft`: drafts fit their targets, models that transformers loads and whose layers all matter."""

from __future__ import annotations

import json
from pathlib import Path

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

from sglang_layered_lab.models.drafts import make_draft  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_LAYERS = 3


@pytest.fixture(scope="module", params=DRAFTABLE)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / request.param
    make_from_recipe(find_recipe(request.param, "tiny", num_layers=NUM_LAYERS, draftable=True), folder)
    return folder


def test_every_layer_changes_tokens(target: Path) -> None:
    """Of prompts of 30 random tokens, in one that adds nothing in a layer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    rows = torch.randint(3, 1000, (6, 30), generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def tokens() -> torch.Tensor:
        return model(rows).logits.argmax(-1)

    expected = tokens()
    for layer in model.model.layers:
        forward = layer.forward
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        changed = (tokens() != expected).float().mean()
        layer.forward = forward
        assert changed > 0.05


def test_a_standalone_draft_guesses_every_other_token(target: Path, tmp_path: Path) -> None:
    make_draft("standalone", target, tmp_path / "draft")
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(path) for path in (target, tmp_path / "draft")
    ]
    rows = torch.randint(3, 1000, (6, 60), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        guessed, expected = (model(rows).logits.argmax(-1) for model in models)
    assert 0.3 < (guessed == expected).float().mean() < 0.95


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


def test_an_mtp_layer_is_of_deepseeks_family(target: Path, tmp_path: Path) -> None:
    if target.name != "deepseek_v3":
        with pytest.raises(ModelRecipeError, match="DeepSeek"):
            make_draft("mtp", target, tmp_path / "mtp")
        return
    make_draft("mtp", target, tmp_path / "mtp")
    before, after = (load_file(path / "model.safetensors") for path in (target, tmp_path / "mtp"))
    assert {name for name in after if name not in before} == {
        name for name in after if name.startswith(f"model.layers.{NUM_LAYERS}.")
    }
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_only_some_models_are_draftable() -> None:
    with pytest.raises(ModelRecipeError, match=r"--draftable is for .*qwen3_moe"):
        find_recipe("llama", "tiny", draftable=True)
