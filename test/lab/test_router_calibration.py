"""`calibrate-router` on a tiny model: transformers' own forward and router logits judge what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sglang_layered_lab.cli.calibrate_router import calibrate_router as command
from sglang_layered_lab.models import make_model
from sglang_layered_lab.models.router_bias import RouterBias
from sglang_layered_lab.models.router_topics import topics_of

torch = pytest.importorskip("torch", reason="the models are made with it")
transformers = pytest.importorskip("transformers", reason="the models are made with it")

from safetensors.torch import load_file  # noqa: E402

from sglang_layered_lab.models.router_apply import apply_bias, layer_of  # noqa: E402
from sglang_layered_lab.models.router_fit import simulate  # noqa: E402
from sglang_layered_lab.models.router_record import ProbeSizes, RoutedModel  # noqa: E402

NUM_EXPERTS, NUM_CHOSEN = 16, 4
ROWS = [
    {"decode_rows": 4, "coverage": 0.47},
    {"decode_rows": 8, "coverage": 0.6},
    {"decode_rows": 16, "coverage": 0.75},
    {"prompt_tokens": 64, "coverage": 0.8},
    {"prompt_tokens": 128, "coverage": 0.9, "fit": False},
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3_moe", "tiny", tmp_path_factory.mktemp("models") / "source", num_layers=3)


@pytest.fixture(scope="module")
def targets(source: Path) -> Path:
    path = source.with_name("targets.json")
    path.write_text(json.dumps({"source": "this test", "rows": ROWS}))
    return path


@pytest.fixture(scope="module")
def made(source: Path, targets: Path) -> tuple[Path, Result]:
    out = source.with_name("calibrated")
    record = ["--record", str(source.with_name("record.json"))]
    return out, run(source, out, "--targets", str(targets), "--seed", "5", *record)


@pytest.fixture(scope="module")
def bias(made: tuple[Path, Result]) -> RouterBias:
    return RouterBias.from_dict(json.loads((made[0] / "router_bias.json").read_text())["bias"])


@pytest.fixture(scope="module")
def loaded(made: tuple[Path, Result]):
    return transformers.AutoModelForCausalLM.from_pretrained(made[0])


def run(source: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(command, [str(source), "--out", str(out), *options])


def prompts(folder: Path, shape: tuple[int, int], seed: int = 11):
    topics = topics_of(folder)
    assert topics is not None
    generator = np.random.default_rng(seed)
    rows = [generator.integers(*topics[generator.integers(len(topics))], shape[1]) for _ in range(shape[0])]
    return torch.from_numpy(np.array(rows))


def chosen_sets(model, tokens) -> list[list[list[set[int]]]]:
    """By transformers' own router logits: [layer][prompt][token] -> experts."""
    with torch.no_grad():
        logits = model(tokens, output_router_logits=True).router_logits
    return [
        [
            [set(row.topk(NUM_CHOSEN).indices.tolist()) for row in prompt]
            for prompt in layer.view(*tokens.shape, -1)
        ]
        for layer in logits
    ]


def touched(sets: list[set[int]]) -> float:
    return len(set().union(*sets)) / NUM_EXPERTS


def weights_of(folder: Path):
    return load_file(folder / "model.safetensors")


def test_the_command_prints_what_it_measured_and_records_it(made: tuple[Path, Result]) -> None:
    out, result = made
    assert result.exit_code == 0, result.output
    record = json.loads((out / "router_bias.json").read_text())
    assert record == json.loads(out.with_name("record.json").read_text())
    assert record["made_of"]["preset"] == "tiny" and record["bias"]["seed"] == 5
    lines = [line for line in result.output.splitlines() if "decode rows" in line or "prompt tokens" in line]
    for row, asked, line in zip(record["coverage"], ROWS, lines, strict=True):
        assert row["target"]["coverage"] == asked["coverage"]
        assert row["off"] == row["calibrated"]["mean"] - asked["coverage"]
        for value in (asked["coverage"], row["uniform"]["mean"], row["calibrated"]["mean"]):
            assert f"{100 * value:.1f}" in line
        assert len(row["calibrated"]["by_layer"]) == 3
        assert abs(row["off"]) <= 0.03 or not row["target"]["fit"]
    assert "not fitted" in lines[-1] and record["stays_in_topic"] == 1.0


def test_the_written_model_meets_the_table_by_transformers_own_routers(
    made: tuple[Path, Result], loaded
) -> None:
    experts = chosen_sets(loaded, prompts(made[0], (96, 64)))
    for row in ROWS[:3]:
        size = row["decode_rows"]
        groups = [range(start, start + size) for start in range(0, 96 - size + 1, size)]
        found = np.mean(
            [touched([layer[prompt][-1] for prompt in group]) for layer in experts for group in groups]
        )
        assert found == pytest.approx(row["coverage"], abs=0.07), row
    found = np.mean([touched(prompt) for layer in experts for prompt in layer])
    assert found == pytest.approx(0.8, abs=0.05)


def test_uniform_coverage_is_near_that_of_a_choice_by_lot(made: tuple[Path, Result]) -> None:
    for row in json.loads((made[0] / "router_bias.json").read_text())["coverage"][:3]:
        by_lot = 1 - (1 - NUM_CHOSEN / NUM_EXPERTS) ** row["target"]["num_tokens"]
        assert row["uniform"]["mean"] == pytest.approx(by_lot, abs=0.04)


def test_reserved_channels_hold_the_token_through_every_layer(
    made: tuple[Path, Result], loaded, bias: RouterBias
) -> None:
    tokens = torch.cat([prompts(made[0], (4, 32)), torch.arange(32)[None], torch.arange(992, 1024)[None]])
    with torch.no_grad():
        output = loaded(tokens, output_hidden_states=True)
    expected = torch.from_numpy(bias.token_channels() * bias.channel_value)[tokens]
    for hidden in output.hidden_states[:-1]:  # the last one is behind the final norm
        assert torch.equal(hidden[..., bias.channels], expected)
    assert output.hidden_states[0][..., : bias.first_channel].std() > 0.1


def test_a_continuation_stays_in_its_topic_and_does_not_repeat_one_token(
    made: tuple[Path, Result], loaded
) -> None:
    starts = prompts(made[0], (8, 24))
    length = {"max_new_tokens": 32, "min_new_tokens": 32}
    output = loaded.generate(starts, attention_mask=torch.ones_like(starts), do_sample=False, **length)
    for start, tokens in zip(starts, output[:, 24:].tolist(), strict=True):
        (topic,) = [topic for topic in topics_of(made[0]) or () if topic[0] <= start[0] < topic[1]]
        assert all(topic[0] <= token < topic[1] for token in tokens)
        assert len(set(tokens)) >= 8


def test_nothing_but_the_reserved_channels_changes(
    made: tuple[Path, Result], source: Path, bias: RouterBias
) -> None:
    before, after = weights_of(source), weights_of(made[0])
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        keep = torch.ones(128, dtype=torch.bool)
        keep[bias.channels] = False
        if "o_proj" in name or "down_proj" in name:
            assert torch.equal(tensor[keep], after[name][keep]) and not after[name][~keep].any()
        elif tensor.ndim == 2:
            assert torch.equal(tensor[:, keep], after[name][:, keep])
            assert after[name][:, ~keep].any() == any(
                part in name for part in ("embed_tokens", "lm_head", "mlp.gate.")
            )
        else:
            assert torch.equal(tensor, after[name])
    files = {path.name for path in made[0].iterdir()}
    assert files == {path.name for path in source.iterdir()} - {"recipe.json"} | {"router_bias.json"}


def test_a_recording_is_what_transformers_choose_and_the_simulation_agrees(
    made: tuple[Path, Result], loaded, bias: RouterBias
) -> None:
    model = RoutedModel(made[0])
    sizes = ProbeSizes(num_requests=8, start_tokens=6, num_steps=2, num_prompts=3, prompt_tokens=40)
    recording = model.record(bias, sizes, seed=9)
    experts = chosen_sets(loaded, torch.from_numpy(recording.prompts.tokens))
    assert recording.prompts.chosen.shape == (3, 3, 40, NUM_EXPERTS)
    for layer, prompt, token in np.ndindex(3, 3, 40):
        found = set(np.flatnonzero(recording.prompts.chosen[layer, prompt, token]).tolist())
        assert found == experts[layer][prompt][token]
    for states in (recording.prompts, recording.decode):
        assert (simulate(states, bias, bias.scales, NUM_CHOSEN) == states.chosen).mean() > 0.9999
    assert recording.decode.tokens.shape == (2, 8) and recording.decode.chosen.sum(-1).min() == NUM_CHOSEN


def test_the_same_seed_gives_the_same_bytes(
    made: tuple[Path, Result], source: Path, targets: Path, tmp_path: Path
) -> None:
    again = tmp_path / "calibrated"
    assert run(source, again, "--targets", str(targets), "--seed", "5").exit_code == 0
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in made[0].iterdir()
    }


def test_a_later_bias_replaces_an_earlier_one(source: Path, bias: RouterBias) -> None:
    once, twice = weights_of(source), weights_of(source)
    apply_bias(twice, replace(bias, seed=6, scales=replace(bias.scales, skew=9.0)))
    assert apply_bias(once, bias) == apply_bias(twice, bias)
    assert all(torch.equal(once[name], twice[name]) for name in once)
    other = weights_of(source)
    apply_bias(other, replace(bias, seed=6))
    assert not torch.equal(once["model.layers.0.mlp.gate.weight"], other["model.layers.0.mlp.gate.weight"])


def fused(weights) -> dict:
    """The weights as SGLang holds them."""
    found = {name: value for name, value in weights.items() if "proj" not in name or "o_proj" in name}
    for layer in range(3):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp.experts"
        found[f"{attention}.qkv_proj.weight"] = torch.cat(
            [weights[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        )
        each = [
            [weights[f"{mlp}.{index}.{part}_proj.weight"] for part in ("gate", "up", "down")]
            for index in range(NUM_EXPERTS)
        ]
        found[f"{mlp}.w13_weight"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in each])
        found[f"{mlp}.w2_weight"] = torch.stack([down for *_, down in each])
    return found


def test_fused_tensors_get_what_single_ones_get(source: Path, bias: RouterBias) -> None:
    single = weights_of(source)
    together = fused(single)
    edited = apply_bias(together, bias)
    apply_bias(single, bias)
    expected = fused(single)
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], expected[name]) for name in expected)
    assert edited == {"reader": 6, "writer": 6, "router": 3, "embedding": 1, "head": 1}


def test_ranks_that_share_the_vocabulary_get_their_rows(source: Path, bias: RouterBias) -> None:
    whole = {name: value for name, value in weights_of(source).items() if value.shape[0] == 1024}
    padded = {name: torch.cat([value, torch.ones(8, 128)]) for name, value in whole.items()}
    parts = [{name: value[start : start + 516] for name, value in padded.items()} for start in (0, 516)]
    apply_bias(whole, bias)
    for start, part in zip((0, 516), parts, strict=True):
        apply_bias(part, bias, first_token_id=start)
    for name, value in whole.items():
        joined = torch.cat([part[name] for part in parts])
        assert torch.equal(joined[:1024], value) and not joined[1024:, bias.channels].any()
    assert len(whole) == 2


def test_a_router_outside_of_the_layers_is_an_error_of_ours() -> None:
    assert layer_of("model.layers.12.mlp.gate") == 12
    with pytest.raises(ValueError, match="in no layer"):
        layer_of("model.gate.weight")
