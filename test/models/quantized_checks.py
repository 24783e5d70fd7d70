"""What is asked of a quantized model: the same tokens in every way to run, with all that stock scheduling meets."""

from __future__ import annotations

from dataclasses import dataclass

from family_checks import NUM_OUTPUTS, chunks_of, run, sequential
from harness import SteppedScheduler
from prompts import prompt

GROUP_TOKENS, CHUNK_TOKENS, UNEVEN_GROUPS, LONGEST, NUM_LAYERS = 64, 128, 2, 3, 3
FLAGS = {
    "max_total_tokens": 4000,
    "layered_group_tokens": GROUP_TOKENS,
    "chunked_prefill_size": CHUNK_TOKENS,
}


@dataclass
class Seen:
    """What was seen of a case; `equal_*` say whether all tokens were the oracle's."""

    methods: list[str]
    equal_stock: dict[str, bool]
    equal_after_drops: dict[int, bool]
    group_sizes: dict[str, list[int]]
    cached_tokens: int
    num_chunks: int
    equal_alone: bool = False
    equal_hugging_face: bool = False


def asked_for() -> list[list[int]]:
    """Seven prompts of 1 to 300 tokens; the fifth starts as the third."""
    made = [prompt(length, index) for index, length in enumerate((12, 100, 70, 300, 0, 1, 40))]
    made[4] = made[2] + prompt(40, 44)
    return made


def check_ways(stepped: SteppedScheduler, asked: list[list[int]]) -> tuple[Seen, list[list[int]]]:
    """What is seen of the model that is served, and the tokens of stock scheduling."""
    stock = run(stepped, asked, layered_prefill=0)
    assert not any(step.kind == "layered" for step in stock.steps)
    runs = {
        "groups": run(stepped, asked, layered_prefill=1),
        "uneven": run(stepped, asked, layered_num_groups=UNEVEN_GROUPS),
        "one layer a group": run(stepped, asked, layered_num_groups=NUM_LAYERS),
    }
    with sequential(stepped):
        runs["sequential"] = run(stepped, asked, layered_num_groups=UNEVEN_GROUPS)
    seen = Seen(
        methods=quantized_by(stepped),
        equal_stock={name: one.tokens == stock.tokens for name, one in runs.items()},
        equal_after_drops={
            group: after_a_drop(stepped, asked, group) == [stock.tokens[1], stock.tokens[LONGEST]]
            for group in range(1, NUM_LAYERS)
        },
        group_sizes={
            name: sorted({step.group.num_layers for step in one.steps if step.group is not None})
            for name, one in runs.items()
        },
        cached_tokens=runs["uneven"].cached_tokens,
        num_chunks=chunks_of(runs["uneven"], runs["uneven"].rids[LONGEST]),
    )
    return seen, stock.tokens


def quantized_by(stepped: SteppedScheduler) -> list[str]:
    """The classes that compute the layers of the model: no plain one may stand in for a quantized one."""
    model = stepped.scheduler.tp_worker.model_runner.model
    methods = {
        type(getattr(module, "scheme", None) or module.quant_method).__name__
        for name, module in model.named_modules()
        if name.endswith((".experts", ".qkv_proj", ".o_proj"))
    }
    return sorted(methods)


def after_a_drop(stepped: SteppedScheduler, asked: list[list[int]], group: int) -> list[list[int]]:
    """A prompt leaves before its `group`-th group beside a request that decodes; then it is asked again."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 1, "layered_num_groups": NUM_LAYERS})
    stays = stepped.send(asked[1], NUM_OUTPUTS)
    stepped.step(3)
    leaves = stepped.send(asked[LONGEST], NUM_OUTPUTS)
    stepped.step_until(lambda: stepped.next_group == group)
    stepped.abort(leaves)
    stepped.step(2)
    again = stepped.send(asked[LONGEST], NUM_OUTPUTS)
    return stepped.finish(stays, again)


def one_by_one(stepped: SteppedScheduler, asked: list[list[int]]) -> list[list[int]]:
    """SGLang's own scheduling with nothing beside a request."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 0})
    outputs = []
    for tokens in asked:
        outputs += stepped.finish(stepped.send(tokens, NUM_OUTPUTS))
        stepped.drain()
    return outputs
