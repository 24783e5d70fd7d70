"""On SGLang 0.5.23 every family, cut at every layer, gives the numbers of the whole model bit for bit.

There a layer is made for its neighbours, and leaves its residual on the batch and a sum over ranks to the next
layer. Without a server: the patches and the scheduler have tests of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from own_process import found_by
from sglang.version import __version__ as release

from sglang_layered_lab.models.catalogue import ARCHS
from sglang_layered_lab.serving import free_port

SCRIPT = Path(__file__).with_name("cut_run.py")
ROUNDING = 1e-4  # of the largest logit: products of more rows are summed in another order
# Of two ranks: pipeline stages, a list of layers, latent attention, recurrent layers.
ON_TWO_RANKS = ("qwen3_moe", "llama4", "deepseek_v3", "nemotron_h")
EXACT = ("again", "one_by_one", "alone", "in_two")

pytestmark = pytest.mark.skipif(
    release != "0.5.23",
    reason=f"layers of SGLang {release} hand their residual on; test_families.py compares",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All families in one process of their own."""
    return found_by(SCRIPT, tmp_path_factory.mktemp("cuts") / "results.json", *ARCHS)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    outs = [tmp_path_factory.mktemp("cuts") / f"{rank}.json" for rank in range(2)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), *ON_TWO_RANKS], env={**env, "RANK": str(rank)}
        )
        for rank, out in enumerate(outs)
    ]
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    return [json.loads(out.read_text()) for out in outs]


def check(seen: dict[str, Any]) -> None:
    assert "error" not in seen, seen["error"]
    assert {name: seen[name] for name in EXACT} == dict.fromkeys(EXACT, 0.0), "prompts or decode rows alone"
    assert seen["joined_cut"], "both in one batch, in one range and layer by layer"
    assert seen["joined"] < ROUNDING, "a group of both against each alone"
    assert "layer 3 takes more from the layers before it" in seen["aside"], "what a start must find"


@pytest.mark.parametrize("arch", ARCHS)
def test_every_cut_gives_the_numbers_of_the_whole_model(arch: str, results: dict[str, Any]) -> None:
    seen = results[arch]
    check(seen)
    assert seen["owed"] == []


@pytest.mark.parametrize("arch", ON_TWO_RANKS)
def test_sums_that_are_owed_where_layers_are_cut_are_done(
    arch: str, on_two_ranks: list[dict[str, Any]]
) -> None:
    one, two = (rank[arch] for rank in on_two_ranks)
    check(one)
    assert one == two
    assert one["owed"] == list(range(1, one["num_layers"])), "every inner cut has one"
    assert "takes more from the layers before it" in one["without_sums"], "a start must find a lost sum"
