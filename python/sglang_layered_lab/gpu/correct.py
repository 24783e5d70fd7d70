"""The stage `correct`: layered answers beside stock's, the GPU tests, and the memory checker.

float32 (triton, torch_native): tokens must be equal. bf16 (flashinfer and fa3 take nothing wider; the big
model): another batch shape rounds otherwise, so tokens may part once two are nearly tied; from there on the
answers are of different texts, and only what came before is judged.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from sglang_layered.errors import GpuHostError
from sglang_layered_lab.gpu.budget import BudgetSpent
from sglang_layered_lab.gpu.client import draw_prompt, request_body
from sglang_layered_lab.gpu.models import model_of, small_model
from sglang_layered_lab.gpu.profiles import Profile
from sglang_layered_lab.gpu.stages import Job, run_command
from sglang_layered_lab.serving import ServerProcess, server_command

FLOAT32_BACKENDS = ("triton", "torch_native")
MAX_LOGPROB_DIFF = 0.2  # bf16, over the tokens that both sides chose alike
NUM_STREAMS, STREAM_TOKENS, NUM_PROMPTS, OUTPUT_TOKENS = 4, 48, 4, 12
LAYERED = (
    "--prefill-mode",
    "layered",
    "--layered-group-tokens",
    "64",
    "--layered-check-invariants",
    "strict",
)
BIG_MODEL_LAYERS = '{"num_hidden_layers": 8}'
SANITIZER = "compute-sanitizer"
BAD_LINE = "========= Invalid", "========= Program hit", "========= Error:", "========= Barrier error"

Answers = list[tuple[list[int], list[float]]]  # of each request its tokens and their log-probabilities


@dataclass(frozen=True, slots=True)
class Case:
    """One stock server and, with the same flags, a layered one for each strategy."""

    model: str  # tiny (float32), demo (bf16), or shapes (the profile's own, 8 layers, dummy weights)
    backend: str
    page_size: int

    @property
    def is_exact(self) -> bool:
        """Tokens must be equal."""
        return self.model == "tiny"

    def key(self, who: str) -> str:
        """Unique in the record."""
        return f"{self.model}/{self.backend}/page{self.page_size}/{who}"

    def flags(self, profile: Profile) -> list[str]:
        """Flags of both servers."""
        flags = [*_without(profile.common_flags, "--dtype", "--attention-backend", "--load-format")]
        flags += ["--dtype", "float32" if self.is_exact else "bfloat16", "--attention-backend", self.backend]
        flags += ["--page-size", str(self.page_size)]
        if self.model == "shapes":
            flags += ["--load-format", "dummy", "--json-model-override-args", BIG_MODEL_LAYERS]
        elif profile.device == "cuda":
            flags += ["--max-total-tokens", "40960"]
        return flags


def cases(profile: Profile) -> list[Case]:
    """Every backend at page size 1 first, then the other page sizes, then the big model."""
    found = [
        Case("tiny" if backend in FLOAT32_BACKENDS else "demo", backend, page)
        for page in profile.page_sizes
        for backend in profile.backends
    ]
    return found + ([Case("shapes", "flashinfer", 1)] if profile.model_path else [])


def correct(job: Job) -> None:
    """Compare answers, then run the GPU tests and the memory checker; what fails does not stop the rest."""
    failures = []
    checks: list[tuple[str, Callable[[], None]]] = [
        (case.key("compare"), partial(_compare_case, job, case)) for case in cases(job.profile)
    ]
    checks.append(("pytest", partial(_run_tests, job)))
    checks += [(f"sanitizer/{name}", partial(_sanitize, job, name)) for name in job.profile.executions]
    for key, check in checks:
        if job.record.has(key) or (job.only and not key.startswith(job.only)):
            continue
        try:
            check()
        except BudgetSpent:
            raise
        except Exception as error:
            failures.append(f"{key}: {error}")
    if failures:
        raise GpuHostError("\n".join(failures))


def _compare_case(job: Job, case: Case) -> None:
    if case.backend == "fa3" and not _has_flash_ops():
        reason = "fa3 needs sgl_kernel's flash_ops, which is not installed here"
        job.record.add({"key": case.key("compare"), "left_out": reason})
        return
    if not job.record.has(case.key("stock")):
        _answer(job, case, "stock", ())
    stock = _answers_of(job.record.row(case.key("stock")))
    for execution in job.profile.executions:
        who = f"layered-{execution}"
        if not job.record.has(case.key(who)):
            _answer(job, case, who, (*LAYERED, "--layered-execution", execution))
        row = job.record.row(case.key(who))
        row |= compare(stock, _answers_of(row))
        job.record.add(row)
        _judge(case, row)
    job.record.add({"key": case.key("compare"), "ok": True})


def compare(stock: Answers, layered: Answers) -> dict[str, Any]:
    """How far two sets of answers agree.

    `agreement`: part of the tokens before the first that differs, over all requests. `first_tokens`: part of
    the requests whose first token agrees. `max_logprob_diff`: over the tokens before the first that differs.
    """
    agreed = total = first = 0
    largest = 0.0
    for (mine, my_logs), (theirs, their_logs) in zip(layered, stock, strict=True):
        pairs = zip(mine, theirs, strict=True)
        same = next((index for index, (one, other) in enumerate(pairs) if one != other), len(theirs))
        agreed, total, first = agreed + same, total + len(theirs), first + (same > 0)
        diffs = (abs(one - other) for one, other in zip(my_logs[:same], their_logs[:same], strict=True))
        largest = max(largest, *diffs, 0.0)
    return {
        "agreement": agreed / total,
        "first_tokens": first / len(stock),
        "max_logprob_diff": round(largest, 6),
    }


def _judge(case: Case, row: dict[str, Any]) -> None:
    if row["num_layered_steps"] == 0:
        raise GpuHostError(f"{row['key']}: no layered step ran, so nothing was compared")
    if case.is_exact and row["agreement"] < 1.0:
        raise GpuHostError(
            f"{row['key']}: {row['agreement']:.1%} of the tokens are stock's; float32 needs all"
        )
    if row["max_logprob_diff"] > MAX_LOGPROB_DIFF:
        raise GpuHostError(
            f"{row['key']}: log-probabilities differ by {row['max_logprob_diff']} > {MAX_LOGPROB_DIFF}"
        )


def _answer(job: Job, case: Case, who: str, flags: Sequence[str]) -> None:
    job.budget.need(20)
    name = case.key(who).replace("/", "-")
    events = job.folder / "correct" / f"{name}.jsonl"
    events.unlink(missing_ok=True)
    listener = ("--layered-listeners", f"jsonl={events}") if flags else ()
    model = _case_model(job, case)
    with ServerProcess(
        model,
        (*case.flags(job.profile), *flags, *listener),
        log_path=events.with_suffix(".log"),
        ready_timeout_s=job.budget.left_s,
    ) as server:
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        answers = asyncio.run(_ask(server.base_url, vocab_size, job.budget.left_s))
    steps = events.read_text().count('"kind": "layered"') if events.exists() else 0
    job.record.add(
        {
            "key": case.key(who),
            "num_layered_steps": steps,
            "tokens": [tokens for tokens, _ in answers],
            "logprobs": [[round(value, 6) for value in values] for _, values in answers],
        }
    )


def _answers_of(row: dict[str, Any]) -> Answers:
    return list(zip(row["tokens"], row["logprobs"], strict=True))


def _case_model(job: Job, case: Case) -> Path:
    return (
        model_of(job.profile, job.folder) if case.model == "shapes" else small_model(case.model, job.folder)
    )


async def _ask(base_url: str, vocab_size: int, timeout_s: float) -> Answers:
    """Four streams decode while prompts of different lengths arrive one after another."""
    source = random.Random(11)
    sizes = [(64, STREAM_TOKENS)] * NUM_STREAMS + [
        (200 + 350 * index, OUTPUT_TOKENS) for index in range(NUM_PROMPTS)
    ]
    async with httpx.AsyncClient(base_url=base_url, timeout=timeout_s, trust_env=False) as client:

        async def one(index: int, prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
            await asyncio.sleep(0.0 if index < NUM_STREAMS else 0.15 + 0.05 * (index - NUM_STREAMS))
            body = request_body(prompt, num_tokens, return_logprob=True)
            reply = await client.post("/generate", json=body)
            if reply.status_code != 200:
                raise GpuHostError(f"/generate answered {reply.status_code}: {reply.text[:300]}")
            entries = reply.json()["meta_info"]["output_token_logprobs"]
            return [int(entry[1]) for entry in entries], [float(entry[0]) for entry in entries]

        asks = [(draw_prompt(source, size, vocab_size), count) for size, count in sizes]
        return list(await asyncio.gather(*(one(index, *ask) for index, ask in enumerate(asks))))


def _run_tests(job: Job) -> None:
    folders = [name for name in ("test/kernels", "test/runner") if Path(name).is_dir()]
    if not folders:
        raise GpuHostError(
            "test/kernels and test/runner are not here; run this in the checkout (TARGET/project)"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *folders]
    no_tests = 5  # pytest's exit status when no test carries the mark
    output = run_command(command, job.folder / "correct" / "pytest.log", job.budget, accept=(0, no_tests))
    job.record.add({"key": "pytest", "ok": True, "output": output.splitlines()[-1:]})


def _sanitize(job: Job, execution: str) -> None:
    key = f"sanitizer/{execution}"
    if shutil.which(SANITIZER) is None:
        job.record.add({"key": key, "left_out": f"{SANITIZER} is not installed here"})
        return
    job.budget.need(60)
    case = Case("tiny", FLOAT32_BACKENDS[0], 1)
    log = job.folder / "correct" / f"sanitizer-{execution}.log"
    model = small_model("tiny", job.folder)
    flags = [*case.flags(job.profile), "--disable-cuda-graph", *LAYERED, "--layered-execution", execution]
    server = ServerProcess(model, flags, log_path=log, ready_timeout_s=job.budget.left_s)
    checked = [SANITIZER, "--tool", "memcheck", "--target-processes", "all"]
    server.command = [*checked, *server_command(sys.executable, model, server.port, flags)]
    with server:
        asyncio.run(_ask(server.base_url, 1024, job.budget.left_s))
    judge_sanitizer(log.read_text(errors="replace"), log)
    job.record.add({"key": key, "ok": True})


def judge_sanitizer(text: str, log: Path) -> None:
    """Raise unless the checker ran and found nothing."""
    if "========= COMPUTE-SANITIZER" not in text:
        raise GpuHostError(f"{SANITIZER} did not start; see {log}")
    bad = [line for line in text.splitlines() if line.startswith(BAD_LINE)]
    if bad:
        raise GpuHostError(f"{SANITIZER} found {len(bad)} errors, first: {bad[0]}; see {log}")


def _has_flash_ops() -> bool:
    spec = importlib.util.find_spec("sgl_kernel")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(list(Path(place).glob("flash_ops*")) for place in places)


def _without(flags: Sequence[str], *names: str) -> list[str]:
    """Flags without those that are named; each of them has one value."""
    kept: list[str] = []
    skip = False
    for word in flags:
        if skip or word in names:
            skip = not skip
        else:
            kept.append(word)
    return kept
