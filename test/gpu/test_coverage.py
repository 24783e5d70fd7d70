"""On a GPU calibrated routers touch the experts of the paper's table, and random ones those of chance."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from sglang_layered_lab.bench import snapshots
from sglang_layered_lab.bench.client import run_client
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import Repetition
from sglang_layered_lab.bench.scalars import coverage
from sglang_layered_lab.cost.coverage import uniform_coverage
from sglang_layered_lab.cost.sizes import named
from sglang_layered_lab.models.router_dummy import FILLED, PACKAGE, is_dummy
from sglang_layered_lab.models.router_targets import DECODE, CoverageTarget, read_targets
from sglang_layered_lab.models.router_topics import topics_of
from sglang_layered_lab.serving import ServerProcess

pytestmark = [pytest.mark.gpu, pytest.mark.server]

MODELS = Path(__file__).resolve().parents[2] / "scripts" / "gpu" / "models"
FLAGS = (
    "--load-format dummy --dtype bfloat16 --attention-backend flashinfer --moe-runner-backend triton"
    " --grammar-backend none --skip-tokenizer-init --disable-cuda-graph --random-seed 1 --stream-interval 1"
    " --skip-server-warmup --enable-metrics --enable-expert-traffic-metrics"
)
NUM_COUNTED = 120  # output tokens of each request
NUM_PROMPTS = 4
MOST_ROWS = 64
OFF = 0.03  # of the experts
TARGETS = [row for row in read_targets().rows if row.kind != DECODE or row.num_tokens <= MOST_ROWS]


@pytest.fixture(scope="module", params=["qwen3-30b-a3b", "qwen3-30b-a3b-routed"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A model's folder, and a server of it whose log says that routers were filled where they should be."""
    model, log = MODELS / request.param, tmp_path_factory.mktemp(request.param) / "server.log"
    env = PACKAGE if is_dummy(model) else {}
    with ServerProcess(model, FLAGS.split(), log_path=log, env=env) as server:
        said = FILLED in log.read_text(errors="replace")
        assert said == is_dummy(model), f"{log}: look for 'Ignore import error' there"
        yield model, server.base_url


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_steps_touch_the_experts_that_were_asked_for(
    served: tuple[Path, str], target: CoverageTarget
) -> None:
    model, url = served
    is_decode = target.kind == DECODE
    before = snapshots.take(url)
    sizes = [(8, NUM_COUNTED)] * target.num_tokens if is_decode else [(target.num_tokens, 1)] * NUM_PROMPTS
    planned = list(requests(model, sizes, seed=target.num_tokens))
    run_client(url, planned, timeout_s=300, num_clients=len(planned) if is_decode else 1)
    usage = asdict(snapshots.between(before, snapshots.take(url)))
    seen = coverage(Repetition(0, (), Window(0, 1), {}, {}, usage), "decode" if is_decode else "prompt")
    rows = (0, target.num_tokens) if is_decode else (target.num_tokens, 0)
    wanted = target.coverage if is_dummy(model) else uniform_coverage(named(str(model)), *rows)
    assert seen == pytest.approx(wanted, abs=OFF)


def requests(model: Path, sizes: list[tuple[int, int]], seed: int) -> Iterator[PlannedRequest]:
    """Requests of a prompt and an output length, each of one topic; sampled, since dummies go in circles."""
    source = random.Random(seed)
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    ranges = topics_of(model) or [(vocab_size // 8, vocab_size * 7 // 8)]
    for index, (num_prompt, num_output) in enumerate(sizes):
        bounds = source.choice(ranges)
        ids = [source.randrange(*bounds) for _ in range(num_prompt)]
        yield PlannedRequest(f"coverage-{seed}-{index}", 0.0, ids, num_output, {"temperature": 1.0})
