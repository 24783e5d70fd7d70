"""From records of duels to observations: the model, the way of scheduling, the times of a configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.pacing import StepLoad
from sglang_layered.core.view import SchedulerView
from sglang_layered.errors import BenchError, ConfigError
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.sweep_result import CellResult
from sglang_layered_lab.cost.duel import PromptTimes, duel_times
from sglang_layered_lab.cost.fit import Observation
from sglang_layered_lab.cost.sizes import from_config
from sglang_layered_lab.cost.ways import Beside, Way, prompt_steps
from sglang_layered_lab.models.catalogue import find_recipe
from sglang_layered_lab.models.recipe import DTYPE_BYTES, ModelRecipe

# SGLang's own chunk where no flag says: GPUs of 60 to 160 GiB, and machines without one.
DEFAULT_CHUNK = {True: 8192, False: 4096}
IS_APART = {"fused": False, "sequential": True}


@dataclass(frozen=True, slots=True)
class Duel:
    """What a cell shows, and how many decode steps its prompts waited for their first (None: it does not)."""

    observations: tuple[Observation, ...]
    before_steps: float | None


def read_duel(cell: CellResult, num_layers: int) -> Duel:
    """Read a cell of a sweep.

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
    way, delay = way_of(record, prompt_tokens, num_layers), delay_steps_of(record)
    beside = Beside(len(record.repetitions[0].background))
    num_steps = len(prompt_steps(num_layers, way, prompt_tokens, beside))
    waits = way.decodes_wait or not beside.decode_rows
    times = duel_times(record.repetitions, None if waits else num_steps, delay)
    beside = replace(beside, context_tokens=times.context_tokens)
    steps = prompt_steps(num_layers, way, prompt_tokens, beside, is_padded(record))
    return Duel(
        tuple(
            Observation(cell.arm, beside.decode_rows, prompt_tokens, *seen)
            for seen in _seen(times, way, beside, steps, delay)
        ),
        times.wait_s / times.decode_s if times.wait_s is not None and times.decode_s else None,
    )


def _seen(
    times: PromptTimes, way: Way, beside: Beside, steps: tuple[StepLoad, ...], delay_steps: int
) -> Iterator[tuple[str, float, tuple[StepLoad, ...], bool]]:
    """Steps of the prompt and a step of decodes, or the pause of those that wait, or the TTFT beside none."""
    decode = Beside(beside.decode_rows + 1, times.decode_context_tokens).step()
    if times.decode_s is not None:
        yield "decode", times.decode_s, (decode,), False
    if not beside.decode_rows:
        yield "ttft", times.ttft_s, (*steps, *delay_steps * (decode,)), True
    elif way.decodes_wait:  # the streams' next token is of a step after the prompt's
        yield "pause", times.steps_s[0], (*steps, *(1 - delay_steps) * (decode,)), False
    else:
        for index, (time_s, step) in enumerate(zip(times.steps_s, steps, strict=True)):
            grown = replace(step, decode_tokens=step.decode_tokens + index * step.decode_rows)
            yield f"step {index}", time_s, (grown,), False


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
    if execution not in IS_APART:
        raise BenchError(
            f"the cost model knows no --layered-execution {execution}: fused and sequential only"
        )
    numbers = ("layered_num_groups", "layered_group_tokens")
    given: dict[str, Any] = {name: int(flags[name]) for name in numbers if name in flags}
    if "layered_policy" in flags:
        given["layered_policy"] = flags["layered_policy"]
    try:
        plan = LayeredConfig(**given).make_policy().plan(SchedulerView(num_layers, (cohort_tokens,)))
    except ConfigError as error:
        raise BenchError(str(error)) from error
    return Way("layered", plan.num_groups, IS_APART[execution], chunk)


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


def is_padded(record: BenchRecord) -> bool:
    """True when the record's server computed attention with `torch_native`.

    Without a GPU that was SGLang's choice, until records began to name what their servers got.
    """
    unnamed = "" if has_gpu(record) else "torch_native"
    given = record.made_with.get("attention") or unnamed
    return flags_of(record).get("attention_backend", given) == "torch_native"


def delay_steps_of(record: BenchRecord) -> int:
    """Steps that run after a token's own before it leaves the scheduler.

    SGLang's overlap scheduler launches a step before it looks at the results of the one before. On a GPU that
    takes no time; on a CPU the launch computes.
    """
    return 0 if has_gpu(record) or "disable_overlap_schedule" in flags_of(record) else 1


def shape_of(record: BenchRecord) -> ModelRecipe:
    """Sizes of the record's model, where it was made on the spot.

    Raises:
        BenchError: only the model's name is in the record.
    """
    made = record.spec["server"].get("model")
    if not isinstance(made, Mapping):
        raise BenchError(f"the record names its model {made!r} and not its sizes: give --model")
    recipe = find_recipe(made["arch"], made.get("preset", "tiny"), num_layers=made.get("num_layers"))
    if not isinstance(recipe, ModelRecipe):
        return from_config(recipe.config_fields())
    dtype = str(flags_of(record).get("dtype", made.get("dtype")))
    return replace(recipe, dtype=dtype) if dtype in DTYPE_BYTES else recipe
