"""One family against SGLang's own scheduling and Hugging Face, stepped in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import TopK

from broken_models import probe_findings
from harness import SteppedScheduler
from kimi_definition import KimiK3, KimiLinear
from prompts import prompt
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.core.events import DropReason, StepDone
from sglang_layered.scheduler import stream

NUM_OUTPUTS = 10
GROUP_TOKENS = 64
CHUNK_TOKENS = 256
UNEVEN_GROUPS = 3
LONGEST, BESIDE, LAST = 3, 0, 6  # of the prompts
DEFINED = {
    "kimi_k3": KimiK3,
    "kimi_linear": KimiLinear,
}  # families that transformers does not know, by their definition


def prompts(turn: int) -> list[list[int]]:
    """Seven prompts of 1 to 600 tokens, another seven in each turn; the fifth starts as the third."""
    prefix = prompt(130, 1000 * turn + 5)
    lengths = (12, 300, 0, 600, 0, 1, 77)
    made = [prompt(length, 1000 * turn + index) for index, length in enumerate(lengths)]
    made[2] = prefix
    made[4] = prefix + prompt(90, 1000 * turn + 4)
    return made


@dataclass
class FamilyResult:
    """What was seen of one family; `equal_*` are the runs whose tokens were all equal to the oracle's."""

    arch: str
    model_class: str
    num_layers: int
    ranges: str
    attention: str
    expert_layers: int
    equal_stock: dict[str, bool] = field(default_factory=dict)
    equal_hugging_face: bool = False
    group_sizes: dict[str, list[int]] = field(default_factory=dict)
    cached_tokens: int = 0
    num_chunks: int = 0
    num_overtaken: dict[str, int] = field(default_factory=dict)
    equal_drops: list[bool] = field(default_factory=list)
    expert_bytes_equal: bool = False
    counted_layers: int = 0
    probe: dict[str, Any] = field(default_factory=dict)

    def also(self, other: FamilyResult) -> None:
        """Equal only where another turn is as well."""
        self.equal_stock = {name: same and other.equal_stock[name] for name, same in self.equal_stock.items()}
        self.equal_hugging_face = self.equal_hugging_face and other.equal_hugging_face

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Run:
    """One pass over the prompts, each sent while those before it decode."""

    rids: list[str]
    tokens: list[list[int]]
    steps: list[StepDone]
    cached_tokens: int
    num_overtaken: int
    logprobs: list[list[float]]  # of the tokens, where they were asked for


class Overtakes:
    """Counts the times that short prompts went before a cohort."""

    def __init__(self) -> None:
        self.count = 0

    def handlers(self) -> stream.Handlers:
        return {stream.Overtaken: self._overtaken}

    def _overtaken(self, event: stream.Overtaken) -> None:
        self.count += 1


def check_family(arch: str, model: Path, stepped: SteppedScheduler, turn: int = 0) -> FamilyResult:
    """Run the prompts of a turn in every way and compare."""
    asked = prompts(turn)
    loop = stepped.loop
    runner_model = stepped.scheduler.tp_worker.model_runner
    result = FamilyResult(
        arch=arch,
        model_class=type(runner_model.model).__name__,
        num_layers=stepped.num_layers,
        ranges=type(loop._launcher._execution._runner._calls.ranges).__name__,
        attention=runner_model.model_config.attention_arch.name,
        expert_layers=sum(layer.num_experts > 0 for layer in loop.layers),
    )
    experts = ExpertOracle(runner_model.model)
    if arch in DEFINED:  # nor are their layers' sizes known then
        result.expert_layers = experts.num_layers
    stock = run(stepped, asked, layered_prefill=0)
    assert not any(step.kind == "layered" for step in stock.steps)
    runs = {
        "groups": run(stepped, asked, layered_prefill=1),
        "uneven": run(stepped, asked, layered_num_groups=UNEVEN_GROUPS),
        "one layer a group": run(stepped, asked, layered_num_groups=stepped.num_layers, layered_max_parked=1),
    }
    with sequential(stepped):
        runs["sequential"] = run(stepped, asked, layered_num_groups=UNEVEN_GROUPS)
    assert stepped.change({"layered_max_parked": 0})
    result.equal_drops = [
        dropped(stepped, group, stock.tokens, asked) for group in range(1, stepped.num_layers)
    ]
    result.num_overtaken = {name: seen.num_overtaken for name, seen in runs.items()}
    result.equal_stock = {name: seen.tokens == stock.tokens for name, seen in runs.items()}
    result.counted_layers, result.expert_bytes_equal = experts.compare(stepped)
    result.equal_hugging_face = oracle(arch, model, asked, stock.tokens) == stock.tokens
    result.group_sizes = {
        name: sorted({step.group.num_layers for step in seen.steps if step.group is not None})
        for name, seen in runs.items()
    }
    if result.ranges == "ListRanges":
        result.probe = probe_findings(runner_model)
    result.cached_tokens = runs["uneven"].cached_tokens
    result.num_chunks = chunks_of(runs["uneven"], runs["uneven"].rids[LONGEST])
    return result


def run(
    stepped: SteppedScheduler, asked: list[list[int]], *, with_logprobs: bool = False, **settings: float
) -> Run:
    stepped.drain()
    assert stepped.change(settings)
    rids, overtakes = [], Overtakes()
    stepped.loop.stream.add(overtakes)
    for tokens in asked:
        rids.append(stepped.send(tokens, NUM_OUTPUTS, return_logprob=with_logprobs))
        stepped.step(3)
    outputs = stepped.finish(*rids)
    logprobs = [list(stepped.reqs[rid].logprob.output_token_logprobs_val or ()) for rid in rids]
    stepped.loop.stream.remove(overtakes)
    cached = sum(stepped.reqs[rid].cached_tokens for rid in rids)
    steps = [event for event in stepped.events if isinstance(event, StepDone)]
    return Run(rids, outputs, steps, cached, overtakes.count, logprobs)


def dropped(stepped: SteppedScheduler, group: int, stock: list[list[int]], asked: list[list[int]]) -> bool:
    """Whether a prompt that starts again before this group, of one layer, answers as in stock scheduling.

    What decodes beside it must, too.
    """
    stepped.drain()
    assert stepped.change({"layered_num_groups": stepped.num_layers})
    beside = stepped.send(asked[BESIDE], NUM_OUTPUTS)
    stepped.step(2)
    rid = stepped.send(asked[LAST], NUM_OUTPUTS)
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.loop.drop(DropReason.PAUSED)
    return stepped.finish(beside, rid) == [stock[BESIDE], stock[LAST]]


class ExpertOracle:
    """Bytes of the distinct routed experts of every call, from what the TopK modules answer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._num_bytes = 0
        self._hooks, self.num_layers = [], 0
        for module in model.modules():
            if isinstance(module, TopK):
                self.num_layers += 1
                self._hooks.append(module.register_forward_hook(self._hear))
        self._sizes = {self._size(module) for module in model.modules() if isinstance(module, FusedMoE)}
        self._routed = {
            module.num_experts - module.num_fused_shared_experts
            for module in model.modules()
            if isinstance(module, FusedMoE)
        }

    def compare(self, stepped: SteppedScheduler) -> tuple[int, bool]:
        """How many layers were counted, and whether the server counted the same bytes."""
        self.stop()
        stepped.drain()
        observer = getattr(stepped.scheduler, "layered_observer", None)
        if self.num_layers == 0:
            return 0, observer is None
        state = observer.state()["expert_traffic"]
        return len(state["moe_layers"]), sum(state["load_bytes"].values()) == self._num_bytes

    def stop(self) -> int:
        """Hear no more; gives the bytes so far."""
        for hook in self._hooks:
            hook.remove()
        return self._num_bytes

    def _hear(self, module: TopK, args: tuple[Any, ...], output: Any) -> None:
        [size], [num_routed] = self._sizes, self._routed
        active = {expert for row in output.topk_ids.tolist() for expert in row if 0 <= expert < num_routed}
        self._num_bytes += len(active) * size

    @staticmethod
    def _size(experts: FusedMoE) -> int:
        weights = dict(experts.named_parameters(recurse=False)).items()
        return sum(weight[0].nbytes for name, weight in weights if name.startswith(("w13_", "w2_")))


@contextmanager
def sequential(stepped: SteppedScheduler) -> Iterator[None]:
    execution = stepped.loop._execution
    before, execution.choice = execution.choice, StrategyChoice("sequential")
    yield
    execution.choice = before


def chunks_of(seen: Run, rid: str) -> int:
    """Cohorts that took a part of this request through the first group."""
    first = (step for step in seen.steps if step.group is not None and step.group.start == 0)
    return sum(rid in step.prompt for step in first)


def oracle(arch: str, model: Path, asked: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """What greedy answers are, by Hugging Face's model or, where there is none, by the definition."""
    if arch not in DEFINED:
        return hugging_face(model, asked)
    definition = DEFINED[arch](model)
    return [definition.best(tokens, answer) for tokens, answer in zip(asked, answers, strict=True)]


def hugging_face(model: Path, asked: list[list[int]]) -> list[list[int]]:
    oracle = (
        model_class(model).from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    )
    outputs = []
    for tokens in asked:
        inputs = torch.tensor([tokens])
        generated = oracle.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            past_key_values=read_ahead(oracle, inputs),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            max_new_tokens=NUM_OUTPUTS,
        )
        outputs.append(generated[0, len(tokens) :].tolist())
    return outputs


def model_class(model: Path) -> Any:
    """transformers' class of a model; its automatic ones do not know configurations of SGLang's own."""
    config = transformers.AutoConfig.from_pretrained(model)
    if not type(config).__module__.startswith("transformers."):
        own = getattr(transformers, config.architectures[0], None)
        if own is not None:
            return own
    has_encoder = hasattr(config, "text_config")
    return transformers.AutoModelForImageTextToText if has_encoder else transformers.AutoModelForCausalLM


def read_ahead(oracle: Any, inputs: torch.Tensor) -> Any:
    """A cache of a prompt's tokens, read one by one after the first chunk, where the model has such; or None.

    transformers' scan without kernels hands no state from one chunk of a prompt to the next: it sums over the
    wrong one of two dimensions (models/nemotron_h, `torch_forward`). Its next token is right.
    """
    chunk_tokens, num_tokens = getattr(oracle.config, "chunk_size", None), inputs.shape[1]
    if chunk_tokens is None or num_tokens <= chunk_tokens:
        return None
    with torch.no_grad():
        cache = oracle(inputs[:, :chunk_tokens], use_cache=True).past_key_values
        for index in range(chunk_tokens, num_tokens - 1):
            oracle(inputs[:, index : index + 1], past_key_values=cache)
    return cache
