"""SGLang's LoRA under the layered loop, on a CPU: what `test_lora.py` asks for, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from lora_served import ORDER, Run, prompts, same

# isort: split
# What is above chooses the CPU and Triton's interpreter before SGLang is imported.
from lora_models import leave_memory_unpinned
from own_process import in_forks
from sglang.srt.lora import deepseek_mla_correction
from sglang.srt.lora.layers import FusedMoEWithLoRA
from sglang.srt.lora.lora_drainer import LoRADrainer
from sglang.srt.lora.lora_registry import LoRARef
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenIDOutput,
    LoadLoRAAdapterReqInput,
    UnloadLoRAAdapterReqInput,
)
from sglang_layered_kernels.cpu import latent_adapters
from sglang_layered_kernels.cpu.expert_adapters import experts_with_adapters

from prompts import prompt
from sglang_layered.core.choice import StrategyChoice
from sglang_layered.core.events import CohortFinished, StepDone
from sglang_layered.upstream.lora import Adapters


@contextmanager
def sequential(run: Run) -> Iterator[None]:
    """Layered steps run decode rows first, then the group."""
    execution = run.stepped.loop._execution
    before, execution.choice = execution.choice, StrategyChoice("sequential")
    yield
    execution.choice = before


def ways(run: Run) -> dict[str, Any]:
    """Every way of docs/models.md against stock scheduling."""
    num_layers, stock = run.stepped.num_layers, run.answers(layered_prefill=0)
    asked: dict[str, tuple[Any, dict[str, float]]] = {
        "groups": (nullcontext(), {"layered_prefill": 1, "layered_num_groups": 0}),
        "uneven": (nullcontext(), {"layered_prefill": 1, "layered_num_groups": 3}),
        "one layer a group": (nullcontext(), {"layered_prefill": 1, "layered_num_groups": num_layers}),
        "sequential": (sequential(run), {"layered_prefill": 1, "layered_num_groups": 3}),
    }
    found: dict[str, Any] = {
        "different": stock != run.answers([None] * len(ORDER), layered_prefill=0),
        "answers": [
            {
                "prompt": tokens,
                "adapter": None if name is None else run.refs[name].lora_path,
                "output": output,
            }
            for tokens, name, output in zip(prompts(), ORDER, stock, strict=True)
        ],
    }
    for name, (way, settings) in asked.items():
        with way:
            equal = same(run.answers(**settings), stock)
        steps = [event for event in run.stepped.events if isinstance(event, StepDone)]
        layered = sum(step.kind == "layered" for step in steps)
        found[name] = {"equal": equal, "layered": layered, "cached": run.cached}
    return found


def mixed(run: Run) -> dict[str, Any]:
    """One way only, for what is taken out of the product."""
    stock = run.answers(layered_prefill=0)
    return {"equal": same(run.answers(layered_prefill=1), stock)}


def leaving(run: Run) -> dict[str, Any]:
    """One of two prompts with different adapters is aborted at each group of their cohort; then both are."""
    equal, tokens = [], [prompt(200, 31), prompt(150, 32)]
    expected = [run.alone(tokens[0], "a"), run.alone(tokens[1], "b")]
    for group in range(1, 4):
        for leaving in ((0,), (1,), (0, 1)):
            with run.decoding("c"):
                rids = [run.send(tokens[0], "a"), run.send(tokens[1], "b")]
                run.stepped.step_until(lambda at=group: run.stepped.next_group == at)
                for index in leaving:
                    run.stepped.abort(rids[index])
                stay = [index for index in (0, 1) if index not in leaving]
                outputs = run.stepped.finish(*(rids[index] for index in stay))
                equal += [output == expected[index] for output, index in zip(outputs, stay, strict=True)]
                again = run.stepped.finish(run.send(tokens[0], "a"), run.send(tokens[1], "b"))
                equal += [again == expected]
    return {"equal": equal}


def paused(run: Run) -> dict[str, Any]:
    """A pause sends the cohort back at each group; it starts again with its adapter."""
    equal, tokens = [], prompt(200, 41)
    expected = run.alone(tokens, "b")
    for group in range(1, 4):
        with run.decoding("a"):
            rid = run.send(tokens, "b")
            run.stepped.step_until(lambda at=group: run.stepped.next_group == at)
            run.stepped.pause("retract")
            run.stepped.resume()
            equal += [run.stepped.finish(rid) == [expected]]
    return {"equal": equal}


def ended(run: Run) -> dict[str, Any]:
    """Who hears of a request that is aborted in flight, or while it waits: an unload waits for an output."""
    run.alone(prompt(5, 1), None)
    heard: list[list[str]] = []
    with run.decoding("c"):
        for name, group in (("a", 2), ("a", None), (None, 2)):
            adapter = None if name is None else run.refs[name].lora_id
            rid = run.stepped.send(prompt(200, 51), 4, lora_id=adapter, return_logprob=name is not None)
            if group is not None:
                run.stepped.step_until(lambda: run.stepped.next_group == 2)
            run.stepped.abort(rid)
            run.stepped.step(2)
            heard.append([])
            for out in (*run.stepped.detokenizer.sent, *run.stepped.tokenizer.sent):
                if isinstance(out, AbortReq) and out.rid == rid:
                    heard[-1] += ["AbortReq"]
                if isinstance(out, BatchTokenIDOutput) and rid in out.rids:
                    heard[-1] += ["output", out.finished_reasons[out.rids.index(rid)]["type"]]
    return {"heard": heard}


def changed(run: Run) -> dict[str, Any]:
    """Beside a cohort of one adapter another one is unloaded and comes again under a new id."""
    tokens = prompt(200, 61)
    expected = [run.alone(tokens, "a"), run.alone(tokens, "c")]
    old, results = run.refs["c"], []
    new = LoRARef(lora_name="c", lora_path=old.lora_path, pinned=False)
    scheduler = run.stepped.scheduler
    with run.decoding(None):
        rid = run.send(tokens, "a")
        run.stepped.step_until(lambda: run.stepped.next_group == 1)
        unload = UnloadLoRAAdapterReqInput(lora_name="c", lora_id=old.lora_id)
        results.append(scheduler.unload_lora_adapter(unload).success)
        run.stepped.step()
        load = LoadLoRAAdapterReqInput(lora_name="c", lora_path=new.lora_path, lora_id=new.lora_id)
        results.append(scheduler.load_lora_adapter(load).success)
        assert run.stepped.next_group == 2
        run.refs["c"] = new
        later = run.send(tokens, "c")
        return {"done": results, "equal": run.stepped.finish(rid, later) == expected}


def few(run: Run) -> dict[str, Any]:
    """Two adapters at a time, of three and none."""
    fetch, sets = run.manager.fetch_new_loras, []

    def watched(new: set[str | None], running: set[str | None] = frozenset()) -> None:  # type: ignore[assignment]
        sets.append(len(new | running))
        fetch(new, running)

    run.manager.fetch_new_loras = watched
    stock = run.answers(layered_prefill=0)
    sets.clear()
    equal = same(run.answers(layered_prefill=1), stock)
    steps = [event for event in run.stepped.events if isinstance(event, StepDone)]
    run.manager.fetch_new_loras = fetch
    return {"equal": equal, "layered": sum(step.kind == "layered" for step in steps), "most": max(sets)}


def drained(run: Run) -> dict[str, Any]:
    """The same, and SGLang keeps prompts back for those whose adapter has waited too long."""
    scheduler = run.stepped.scheduler
    scheduler.lora_drainer = LoRADrainer(2, 1e-9)
    try:
        return few(run)
    finally:
        scheduler.lora_drainer = None


def evicting(run: Run) -> dict[str, Any]:
    """The pool holds no adapter and a running one when a cohort's comes: SGLang evicts adapters first."""
    tokens, other = prompt(200, 71), prompt(20, 72)
    expected = [run.alone(other, "a"), run.alone(tokens, "b")]
    run.alone(prompt(5, 1), None)
    rid = run.send(other, "a")
    run.stepped.step(2)
    try:
        outputs = run.stepped.finish(rid, run.send(tokens, "b"))
    except KeyError:  # of an adapter that is not there; SGLang 0.5.17 takes the weights of another
        return {"equal": False}
    return {"equal": outputs == expected}


def overtaken(run: Run) -> dict[str, Any]:
    """A short prompt overtakes a long one of another adapter; a third adapter does not fit beside both."""
    asks = [(prompt(250, 81), "a"), (prompt(20, 82), "b"), (prompt(20, 83), "c")]
    expected = [run.alone(*ask) for ask in asks]
    assert run.stepped.change({"layered_max_parked": 1})
    rids = [run.send(*asks[0])]
    run.stepped.step()
    rids += [run.send(*ask) for ask in asks[1:]]
    equal = same(run.stepped.finish(*rids), expected)
    assert run.stepped.change({"layered_max_parked": 0})
    ends = [event.request_ids for event in run.stepped.events if isinstance(event, CohortFinished)]
    return {"equal": equal, "order": [rids.index(rid) for ids in ends for rid in ids]}


# What is taken out of the product, so that a scenario shows what it is for: a method of Adapters.
WITHOUT: dict[str, tuple[str, Callable[..., Any]]] = {
    "use": ("use", lambda adapters, batch: None),
    "fetch": ("fetch", lambda adapters, *batches: None),
}
SCENARIOS = {
    "ways": ways,
    "mixed": mixed,
    "leaving": leaving,
    "paused": paused,
    "ended": ended,
    "changed": changed,
    "few": few,
    "drained": drained,
    "evicting": evicting,
    "overtaken": overtaken,
}


def played(run: Run, name: str) -> dict[str, Any]:
    """What a scenario found; `NAME/PART` plays it without that part of the product."""
    scenario, _, without = name.partition("/")
    if not without:
        return SCENARIOS[scenario](run)
    attribute, instead = WITHOUT[without]
    kept = getattr(Adapters, attribute)
    setattr(Adapters, attribute, instead)
    try:
        return SCENARIOS[scenario](run)
    finally:
        setattr(Adapters, attribute, kept)


def play(folder: Path, scenarios: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """What each scenario found on one scheduler."""
    run = Run(folder, **flags)
    return {name: played(run, name) for name in scenarios}


def main() -> None:
    """Write what was found in each case into a file: OUT, and by name flags and scenarios, as JSON."""
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    leave_memory_unpinned()
    vars(deepseek_mla_correction).update(latent_adapters.FUNCTIONS)
    FusedMoEWithLoRA._forward_with_lora = experts_with_adapters
    plays = {name: partial(play, out.with_suffix("") / name, **case) for name, case in cases.items()}
    out.write_text(json.dumps(in_forks(plays)))


if __name__ == "__main__":
    main()
