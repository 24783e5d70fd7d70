"""Layered answers beside stock's on a GPU: which servers are compared, what they are asked, how they agree.

float32 (triton): tokens must be equal. bf16 (flashinfer and fa3 take nothing wider; the big model): another
batch shape rounds otherwise, so tokens may part once two are nearly tied; from there on the answers are of
different texts, and only what came before is judged.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_models import MODELS, tiny_model

from sglang_layered_lab.models import make_model
from sglang_layered_lab.serving import ServerProcess
from workload import Ask, answers, output_tokens, prompt, read_steps

SHAPES = Path(__file__).resolve().parents[2] / "scripts" / "gpu" / "models" / "qwen3-30b-a3b"
FEW_LAYERS = json.dumps({"num_hidden_layers": 8})
GROUP_GRAPHS = "groupgraphs"  # fused, with graphs of the group's layers
EXECUTIONS = ("fused", "sequential", "concurrent")
WAYS = (*EXECUTIONS, GROUP_GRAPHS)
COMMON = (
    "--moe-runner-backend triton --grammar-backend none --skip-tokenizer-init --disable-prefill-cuda-graph"
    " --cuda-graph-max-bs-decode 64 --disable-flashinfer-autotune --mm-feature-transport cpu --random-seed 1"
    " --stream-interval 1 --skip-server-warmup"
)
LAYERED = "--prefill-mode layered --layered-group-tokens 64 --layered-check-invariants strict"
GROUP_ROWS = "256 512 1024 1280"
MAX_LOGPROB_DIFF = 0.2  # bf16, over the tokens that both sides chose alike
NUM_STREAMS, STREAM_TOKENS, NUM_PROMPTS, OUTPUT_TOKENS = 4, 48, 4, 12


@dataclass(frozen=True)
class Case:
    """One stock server and, with the same flags, a layered one for each strategy."""

    model: str  # tiny (float32), demo (bf16), or shapes (8 layers of the big model's, dummy weights)
    backend: str
    page_size: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.backend}-page{self.page_size}"

    @property
    def is_exact(self) -> bool:
        """Tokens must be equal."""
        return self.model == "tiny"

    @property
    def folder(self) -> Path:
        if self.model == "shapes":
            return SHAPES
        return tiny_model("qwen3_moe") if self.is_exact else make_model("qwen3_moe", "demo", MODELS / "demo")

    def flags(self, execution: str | None) -> list[str]:
        """Flags of the stock server (None), or of a layered one."""
        flags = [*COMMON.split(), "--dtype", "float32" if self.is_exact else "bfloat16"]
        flags += ["--attention-backend", self.backend, "--page-size", str(self.page_size)]
        if self.model == "shapes":
            flags += ["--load-format", "dummy", "--json-model-override-args", FEW_LAYERS]
        else:
            flags += ["--max-total-tokens", "40960"]
        if execution is None:
            return flags
        if execution == GROUP_GRAPHS:
            return [*flags, *LAYERED.split(), "--layered-graph-group-rows", *GROUP_ROWS.split()]
        return [*flags, *LAYERED.split(), "--layered-execution", execution]


CASES = (
    *(Case("tiny", "triton", page) for page in (1, 16, 64)),
    *(Case("demo", backend, page) for backend in ("flashinfer", "fa3") for page in (1, 16, 64)),
    Case("shapes", "flashinfer", 1),
)


class TokenAsk(Ask):
    """A request that wants the log-probabilities of its output."""

    def body(self) -> dict[str, Any]:
        return super().body() | {"return_logprob": True}


def asks() -> list[Ask]:
    """Four streams decode while prompts of different lengths arrive one after another."""
    streams = [TokenAsk(prompt(64, 11 + index), 0.0, STREAM_TOKENS) for index in range(NUM_STREAMS)]
    prompts = [
        TokenAsk(prompt(200 + 350 * index, 31 + index), 0.15 + 0.05 * index, OUTPUT_TOKENS)
        for index in range(NUM_PROMPTS)
    ]
    return [*streams, *prompts]


def answers_of(case: Case, execution: str | None, folder: Path) -> tuple[list[dict[str, Any]], int]:
    """What a server of its own answers, and how many layered steps it took."""
    steps = folder / "steps.jsonl"
    listener = [] if execution is None else ["--layered-listeners", f"jsonl={steps}"]
    flags = [*case.flags(execution), *listener]
    with ServerProcess(case.folder, flags, log_path=folder / "server.log") as server:
        got = answers(server.base_url, asks())
        return got, sum(step["kind"] == "layered" for step in read_steps(steps))


@dataclass(frozen=True)
class Agreement:
    """How far two sets of answers agree.

    `tokens`: part of the tokens before the first that differs, over all requests. `first_tokens`: part of the
    requests whose first token agrees. `max_logprob_diff`: over the tokens before the first that differs.
    """

    tokens: float
    first_tokens: float
    max_logprob_diff: float


def compare(stock: Sequence[dict[str, Any]], layered: Sequence[dict[str, Any]]) -> Agreement:
    """Compare answers of `/generate`, request by request."""
    agreed = total = first = 0
    largest = 0.0
    for ours, theirs in zip(layered, stock, strict=True):
        pairs = list(zip(output_tokens(ours), output_tokens(theirs), strict=True))
        same = next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))
        agreed, total, first = agreed + same, total + len(pairs), first + (same > 0)
        logs = zip(_logprobs(ours)[:same], _logprobs(theirs)[:same], strict=True)
        largest = max(largest, *(abs(one - other) for one, other in logs), 0.0)
    return Agreement(agreed / total, first / len(stock), round(largest, 6))


def _logprobs(answer: dict[str, Any]) -> list[float]:
    return [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]


def has_flash_ops() -> bool:
    """FlashAttention-3 is in sgl_kernel here; the bundle has no room for it."""
    spec = importlib.util.find_spec("sgl_kernel")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(list(Path(place).glob("flash_ops*")) for place in places)
