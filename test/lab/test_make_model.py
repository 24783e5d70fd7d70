"""`make-model`: what it writes loads elsewhere, is not degenerate, repeats, and is never half there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_layered.errors import ModelRecipeError
from sglang_layered_lab.cli.make_model import make_model as command
from sglang_layered_lab.models import find_recipe, make_model
from sglang_layered_lab.models.catalogue import ARCHS, PRESETS
from sglang_layered_lab.models.make import make_from_recipe, num_bytes_of, num_parameters_of
from sglang_layered_lab.models.tensors import LAYOUTS, list_tensors

torch = pytest.importorskip("torch", reason="the models are made with it")
transformers = pytest.importorskip("transformers", reason="the models are made with it")

from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from sglang_layered_lab.models import checkpoint  # noqa: E402
from sglang_layered_lab.models.checkpoint import random_tensor, write_weights  # noqa: E402
from sglang_layered_lab.models.tokenizer import train_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[arch for arch in ARCHS if arch not in LAYOUTS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, "tiny", tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def loaded(folder: Path):
    has_encoder = bool(find_recipe(folder.name, "tiny").as_dict().get("around"))
    auto = transformers.AutoModelForImageTextToText if has_encoder else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, output_loading_info=True)


def small(out: Path, **options: object) -> Path:
    return make_model("llama", "tiny", out, num_layers=1, **options)  # type: ignore[arg-type]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_transformers_finds_every_weight_and_no_other(loaded, folder: Path) -> None:
    model, info = loaded
    assert not any(info.values()), info
    recipe = find_recipe(folder.name, "tiny")
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters_of(recipe)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30e6


def test_greedy_output_depends_on_the_prompt_and_does_not_repeat_one_token(loaded) -> None:
    model, _ = loaded
    generator = torch.Generator().manual_seed(7)
    vocab_size = model.config.get_text_config().vocab_size
    prompts = torch.randint(3, vocab_size, (8, 24), generator=generator)
    length = {"max_new_tokens": 32, "min_new_tokens": 32}
    output = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, **length)
    tokens = output[:, prompts.shape[1] :].tolist()
    assert len({tuple(row) for row in tokens}) == 8
    assert min(len(set(row)) for row in tokens) >= 8, tokens


@pytest.mark.parametrize("folder", ["qwen3_moe"], indirect=True)
def test_the_router_of_every_layer_uses_many_experts(loaded) -> None:
    model, _ = loaded
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(
            lambda gate, inputs, _, index=index: seen.update(
                {index: inputs[0].flatten(0, -2) @ gate.weight.T}
            )
        )
    prompt = torch.randint(3, model.config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model(prompt)
    assert len(seen) == model.config.num_hidden_layers
    for index, logits in seen.items():
        counts = torch.bincount(logits.topk(4).indices.flatten(), minlength=16).double()
        share = counts / counts.sum()
        entropy = -(share * share.clamp_min(1e-12).log()).sum() / torch.log(torch.tensor(16.0))
        assert entropy > 0.9, f"layer {index}: {counts.tolist()}"


def test_the_tokenizer_keeps_text_and_decodes_every_id(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    assert len(tokenizer) == config["vocab_size"]
    for text in ("Why is the sky blue?\n", "def f(x):\n    return x + 41\n", "naïve 北京 \t\x00 🚢"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert all(isinstance(tokenizer.decode([token]), str) for token in range(config["vocab_size"]))
    assert not any(token.startswith("<|extra_") for token in tokenizer.get_vocab())
    assert tokenizer.eos_token_id == config["eos_token_id"]
    assert tokenizer.pad_token_id == config["pad_token_id"]


def test_the_chat_template_renders_turns(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ("<|start|>system\nBe brief.<|end|>\n<|start|>user\nWhy?<|end|>\n<|start|>assistant\n")
    assert tokenizer(text)["input_ids"].count(tokenizer.eos_token_id) == len(turns)


def test_a_vocabulary_beyond_the_corpus_is_filled_with_names() -> None:
    tokenizer = train_tokenizer(5000)
    assert sorted(tokenizer.get_vocab().values()) == list(range(5000))
    assert tokenizer.decode([4999]).startswith("<|extra_")
    assert train_tokenizer(1024).to_str() == train_tokenizer(1024).to_str()
    with pytest.raises(ModelRecipeError, match="258"):
        train_tokenizer(258)


@pytest.mark.parametrize("key", list(PRESETS))
def test_presets_have_the_size_that_the_documents_speak_of(key: tuple[str, str]) -> None:
    low, high = {
        ("qwen3_moe", "tiny"): (3e6, 5e6),
        ("llama", "tiny"): (1e6, 2e6),
        ("qwen3_moe", "demo"): (1.0e9, 1.3e9),
        ("llama", "demo"): (0.27e9, 0.33e9),
        ("qwen3_moe", "bench"): (0.19e9, 0.23e9),
        ("qwen3_moe", "bench-few-experts"): (0.09e9, 0.13e9),
        ("llama", "bench"): (0.06e9, 0.08e9),
    }[key]
    assert low < num_parameters_of(PRESETS[key]) < high
    names = [tensor.name for tensor in list_tensors(PRESETS[key])]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("arch", LAYOUTS)
def test_a_family_that_transformers_does_not_know_has_the_tensors_of_its_recipe(
    tmp_path: Path, arch: str
) -> None:
    """Whether these are the family's, test/models/test_families.py says."""
    folder = make_model(arch, "tiny", tmp_path / arch)
    weights, recipe = load_file(folder / "model.safetensors"), find_recipe(arch, "tiny")
    assert sum(weight.numel() for weight in weights.values()) == num_parameters_of(recipe)
    assert len(weights) == len(list(list_tensors(recipe)))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == arch
    assert len(config["architectures"]) == 1


def test_weights_depend_on_seed_and_name_alone() -> None:
    tensors = list(list_tensors(find_recipe("qwen3_moe", "tiny", num_layers=1)))
    spread = [tensor for tensor in tensors if tensor.std]
    first = {tensor.name: random_tensor(tensor, 5, torch.float32) for tensor in spread}
    again = {tensor.name: random_tensor(tensor, 5, torch.float32) for tensor in reversed(spread)}
    other = {tensor.name: random_tensor(tensor, 6, torch.float32) for tensor in spread}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert len({tuple(values.flatten()[:16].tolist()) for values in first.values()}) == len(spread)
    for tensor in spread:
        assert first[tensor.name].std().item() == pytest.approx(tensor.std, rel=0.1)


def test_a_shorter_bfloat16_model_is_the_rounded_start_of_the_longer_float32_one(tmp_path: Path) -> None:
    long = load_file(make_model("llama", "tiny", tmp_path / "a", num_layers=2) / "model.safetensors")
    short = load_file(make_model("llama", "tiny", tmp_path / "b", 0, "bfloat16", 1) / "model.safetensors")
    assert {name for name in long if ".layers.1." not in name} == set(short)
    assert all(torch.equal(values, long[name].bfloat16()) for name, values in short.items())


def test_one_model_in_several_files_has_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    whole = small(tmp_path / "whole")
    monkeypatch.setattr(checkpoint.write_weights, "__defaults__", (300_000,))
    parts, steps = tmp_path / "parts", list[int]()
    recipe = find_recipe("llama", "tiny", num_layers=1)
    assert make_from_recipe(recipe, parts, on_progress=steps.append)
    assert sum(steps) == num_bytes_of(recipe)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    files = sorted(parts.glob("model-*.safetensors"))
    assert all(path.stat().st_size < 310_000 or len(load_file(path)) == 1 for path in files)
    assert len(files) > 2 and set(index["weight_map"].values()) == {path.name for path in files}
    merged = {name: value for path in files for name, value in load_file(path).items()}
    expected = load_file(whole / "model.safetensors")
    assert merged.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    _, info = transformers.AutoModelForCausalLM.from_pretrained(parts, output_loading_info=True)
    assert not any(info.values()), info


def test_making_it_again_changes_nothing_and_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    first = small(tmp_path / "first")
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert small(tmp_path / "first") == first
    assert {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == times
    assert snapshot(small(tmp_path / "second")) == snapshot(first)


def test_another_model_in_the_folder_is_refused_and_replaced_only_by_force(tmp_path: Path) -> None:
    out = small(tmp_path / "model")
    before = snapshot(out)
    with pytest.raises(ModelRecipeError, match="--force"):
        small(out, seed=1)
    assert snapshot(out) == before
    small(out, seed=1, force=True)
    assert snapshot(out)["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_folder_is_noticed(tmp_path: Path) -> None:
    out = small(tmp_path / "model")
    (out / "tokenizer.json").unlink()
    with pytest.raises(ModelRecipeError, match=r"tokenizer\.json .*--force"):
        small(out)
    assert (small(out, force=True) / "tokenizer.json").is_file()


@pytest.mark.parametrize("force", [False, True])
def test_files_of_others_are_never_touched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    for out in (tmp_path, tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "model"):
        with pytest.raises(ModelRecipeError, match="--out"):
            small(out, force=force)
    assert snapshot(tmp_path) == {"thesis.txt": b"ten years"}


def test_an_empty_or_missing_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (small(tmp_path / "empty") / "recipe.json").is_file()
    assert (small(tmp_path / "deep" / "down") / "recipe.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), SafetensorError("disk full")])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch, error) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises((KeyboardInterrupt, ModelRecipeError)):
        small(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_the_slower_of_two_processes_keeps_the_model_that_is_there(tmp_path: Path, monkeypatch) -> None:
    def write_late(recipe, folder, on_progress) -> None:
        monkeypatch.undo()
        small(tmp_path / "model")
        write_weights(recipe, folder, on_progress)

    monkeypatch.setattr(checkpoint, "write_weights", write_late)
    assert (small(tmp_path / "model") / "recipe.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(ModelRecipeError, match="GB are free"):
        small(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"arch": "gpt"}, "--arch"),
        ({"preset": "huge"}, "--preset"),
        ({"arch": "mixtral", "preset": "demo"}, "--preset"),
        ({"dtype": "float8"}, "--dtype"),
        ({"num_layers": 0}, "--layers"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_bad_input_is_refused_by_name(options: dict[str, object], named: str) -> None:
    with pytest.raises(ModelRecipeError, match=named):
        find_recipe(**{"arch": "llama", "preset": "tiny", **options})  # type: ignore[arg-type]


def test_the_command_makes_a_model_and_says_what_it_made(tmp_path: Path) -> None:
    arguments = ["--arch", "llama", "--preset", "tiny", "--layers", "1", "--out", str(tmp_path / "model")]
    made = CliRunner().invoke(command, arguments)
    assert made.exit_code == 0 and "made in" in made.output, made.output
    assert "already there" in CliRunner().invoke(command, arguments).output
    refused = CliRunner().invoke(command, [*arguments, "--seed", "3"])
    assert isinstance(refused.exception, ModelRecipeError)
    assert "--layers" in CliRunner().invoke(command, [*arguments, "--layers", "0"]).output


def test_recipes_and_help_need_no_torch() -> None:
    code = (
        "import sys, sglang_layered_lab.models.recipe, sglang_layered_lab.cli.make_model;"
        "assert not {'torch', 'transformers', 'tokenizers', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
