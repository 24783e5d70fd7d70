"""From records of duels to observations: the model, the way of scheduling, the times of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import BenchError, ConfigError
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.scalars import coverage as measured
from sglang_layered_lab.bench.sweep_result import CellResult
from sglang_layered_lab.cost.coverage import CoverageTable, Points
from sglang_layered_lab.cost.duel import DuelTimes, duel_times
from sglang_layered_lab.cost.fit import Observation
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.shape import ModelShape, from_config
from sglang_layered_lab.cost.step import Attention, Step
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps
from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.recipe import ModelRecipe

# SGLang's own chunk where no flag says: GPUs of 60 to 160 GiB, and machines without one.
DEFAULT_CHUNK = {True: 8192, False: 4096}
JOINED: Mapping[str, Any] = {"fused": "fused", "sequential": "apart"}


@dataclass(frozen=True, slots=True)
class DuelCell:
    """A cell of a sweep that is a duel: how its prompts were scheduled, and what was seen."""

    arm: str
    way: Way
    delay_steps: int
    times: DuelTimes
    cell: CellResult

    @property
    def prompt_tokens(self) -> int:
        """Tokens of each prompt."""
        return self.times.times.prompt_tokens


def duel_cell(cell: CellResult, num_layers: int) -> DuelCell:
    """Read a cell.

    Raises:
        BenchError: it is no duel, or its flags or times are not understood.
    """
    record = cell.record
    load = record.spec["load"]
    if load["arrivals"] != "closed" or load["num_clients"] != 1:
        raise BenchError("it is no duel: prompts do not come one after another")
    lengths = {trace.prompt_tokens for each in record.repetitions for trace in each.traces}
    if len(lengths) != 1:
        raise BenchError(f"its prompts have {len(lengths)} lengths, not one")
    [prompt_tokens] = lengths
    way = way_of(record, prompt_tokens, num_layers)
    beside = Beside(len(record.repetitions[0].background))
    steps = prompt_steps(num_layers, way, prompt_tokens, beside)
    num_steps = len(steps) if beside.decode_rows and not way.decodes_wait else None
    delay = delay_steps_of(record)
    return DuelCell(cell.arm, way, delay, duel_times(record.repetitions, num_steps, delay), cell)


def observations_of(cell: DuelCell, model: StepModel) -> list[Observation]:
    """Steps of the prompt (together one weight) and a step of decodes; where nothing decodes, the TTFT."""
    times, num_rows = cell.times.times, cell.times.decode_rows
    beside = Beside(num_rows, times.context_tokens)
    steps = prompt_steps(model.shape.num_layers, cell.way, times.prompt_tokens, beside)
    decode = Beside(num_rows + 1, times.decode_context_tokens).step()

    def seen(
        what: str, value_s: float, steps: Sequence[Step], weight: float = 1.0, requests: int = 0
    ) -> Observation:
        works = tuple(model.work(step) for step in steps)
        return Observation(cell.arm, num_rows, times.prompt_tokens, what, value_s, works, requests, weight)

    found = []
    if times.decode_s is not None:
        found.append(seen("decode", times.decode_s, [decode]))
    if not num_rows:
        return [*found, seen("ttft", times.ttft_s, [*steps, *cell.delay_steps * [decode]], requests=1)]
    if cell.way.decodes_wait:  # the streams' next token is of a step after the prompt's
        return [*found, seen("pause", times.steps_s[0], [*steps, *(1 - cell.delay_steps) * [decode]])]
    for index, (time_s, step) in enumerate(zip(times.steps_s, steps, strict=True)):
        grown = replace(step, context_tokens=step.context_tokens + index)
        found.append(seen(f"step {index}", time_s, [grown], 1 / len(steps)))
    return found


def way_of(record: BenchRecord, prompt_tokens: int, num_layers: int) -> Way:
    """How the record's server scheduled a prompt, by its flags.

    Raises:
        BenchError: a way that the cost model does not know.
    """
    flags = flags_of(record)
    chunk: int | None = int(flags.get("chunked_prefill_size", DEFAULT_CHUNK[has_gpu(record)]))
    chunk = chunk if chunk is not None and chunk > 0 else None
    if flags.get("prefill_mode") == "layered":
        return _layered_way(flags, min(prompt_tokens, chunk or prompt_tokens), num_layers, chunk)
    if "enable_mixed_chunk" in flags:
        return Way("mixed", chunk or prompt_tokens + len(record.repetitions[0].background))
    return Way("whole") if chunk is None or chunk >= prompt_tokens else Way("chunked", chunk)


def _layered_way(flags: Mapping[str, str], cohort_tokens: int, num_layers: int, chunk: int | None) -> Way:
    execution = flags.get("layered_execution", LayeredConfig().layered_execution)
    if execution not in JOINED:
        raise BenchError(
            f"the cost model knows no --layered-execution {execution}: fused and sequential only"
        )
    groups = flags.get("layered_num_groups")
    try:
        config = LayeredConfig(
            layered_num_groups=None if groups is None else int(groups),
            layered_group_tokens=int(flags.get("layered_group_tokens", LayeredConfig().layered_group_tokens)),
            layered_policy=flags.get("layered_policy", LayeredConfig().layered_policy),
        )
        plan = config.make_policy().plan(SchedulerView(num_layers, (cohort_tokens,)))
    except ConfigError as error:
        raise BenchError(str(error)) from error
    return Way("layered", plan.num_groups, JOINED[execution], chunk)


def flags_of(record: BenchRecord) -> dict[str, str]:
    """The server's flags by name with underscores; the value of a switch is empty."""
    found: dict[str, str] = {}
    name = ""
    for word in record.spec["server"].get("flags", ()):
        if word.startswith("--"):
            head, _, value = word[2:].partition("=")
            name = head.replace("-", "_")
            found[name] = value
        elif name:
            found[name] = found[name] or word
    return found


def has_gpu(record: BenchRecord) -> bool:
    """True when the record was made on a machine with a GPU."""
    return bool(record.made_with.get("machine", {}).get("gpus"))


def attention_of(record: BenchRecord) -> Attention:
    """How the record's server computes attention: `torch_native` is what serves without a GPU."""
    backend = flags_of(record).get("attention_backend", "" if has_gpu(record) else "torch_native")
    return "padded" if backend == "torch_native" else "exact"


def delay_steps_of(record: BenchRecord) -> int:
    """Steps that run after a token's own before it leaves the scheduler.

    SGLang's overlap scheduler launches a step before it looks at the results of the one before. On a GPU that
    takes no time; on a CPU the launch computes.
    """
    return 0 if has_gpu(record) or "disable_overlap_schedule" in flags_of(record) else 1


def shape_of(record: BenchRecord) -> ModelShape:
    """Sizes of the record's model, where it was made on the spot.

    Raises:
        BenchError: only the model's name is in the record.
    """
    made = record.spec["server"].get("model")
    if not isinstance(made, Mapping):
        raise BenchError(f"the record names its model {made!r} and not its sizes: give --model")
    recipe = find_recipe(made["arch"], made.get("preset", "tiny"), num_layers=made.get("num_layers"))
    dtype = flags_of(record).get("dtype", made.get("dtype") or recipe.dtype)
    if not isinstance(recipe, ModelRecipe):
        return from_config(
            {**recipe.fields, "num_hidden_layers": recipe.num_layers, "vocab_size": recipe.vocab_size}
        )
    experts = recipe.experts
    config = {
        "num_hidden_layers": recipe.num_layers,
        "hidden_size": recipe.hidden_size,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": recipe.head_size,
        "vocab_size": recipe.vocab_size,
        "num_experts": experts.num_experts if experts else None,
        "num_experts_per_tok": experts.num_experts_per_token if experts else None,
        "intermediate_size": experts.intermediate_size if experts else recipe.intermediate_size,
    }
    return from_config(config, dtype if dtype != "auto" else recipe.dtype)


def coverage_of(cells: Sequence[DuelCell]) -> CoverageTable | None:
    """Coverage that the servers counted, mean over records; None where they counted nothing.

    Decode steps by their rows, the prompt's request among them; prompts by the rows of a step without
    decodes, where all its steps have as many.
    """
    prompt: dict[float, list[float]] = {}
    decode: dict[float, list[float]] = {}
    for each in cells:
        repetitions = each.cell.record.repetitions
        _add(decode, each.times.decode_rows + 1, repetitions, "decode")
        alone = each.way.decodes_wait or not each.times.decode_rows
        size = each.way.size if each.way.kind in ("chunked", "mixed") else each.prompt_tokens
        if alone and each.prompt_tokens % size == 0:
            _add(prompt, size, repetitions, "prompt")
    if not prompt or not decode:
        return None
    return CoverageTable(_means(prompt), _means(decode))


def _add(points: dict[float, list[float]], rows: int, repetitions: Sequence[Repetition], phase: str) -> None:
    known = [value for each in repetitions if (value := measured(each, phase)) is not None]
    if known:
        points.setdefault(rows, []).extend(known)


def _means(points: Mapping[float, Sequence[float]]) -> Points:
    return tuple((rows, fmean(values)) for rows, values in sorted(points.items()))
