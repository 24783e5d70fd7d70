"""What is asked of a quantized model: the same tokens in every way to run, with chunks, hits and drops."""

from __future__ import annotations

from dataclasses import dataclass

from family_checks import NUM_OUTPUTS, Run, chunks_of, run, sequential
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
    """What was seen of a case; `equal_*` say whether all tokens were the oracle's.

    `furthest_logprob` is the largest distance of a token's log probability from that of stock scheduling:
    the same tokens may hide that a row depends on others.
    """

    methods: list[str]
    equal_stock: dict[str, bool]
    furthest_logprob: dict[str, float]
    equal_after_drops: dict[int, bool]
    group_sizes: dict[str, list[int]]
    cached_tokens: int
    num_chunks: int
    equal_alone: bool = False
    furthest_alone: float = 0.0
    equal_hugging_face: bool = False


def asked_for() -> list[list[int]]:
    """Seven prompts of 1 to 300 tokens; the fifth starts as the third."""
    made = [prompt(length, index) for index, length in enumerate((12, 100, 70, 300, 0, 1, 40))]
    made[4] = made[2] + prompt(40, 44)
    return made


def check_ways(stepped: SteppedScheduler, asked: list[list[int]]) -> tuple[Seen, Run]:
    """What is seen of the model that is served, and the run of stock scheduling."""
    stock = run(stepped, asked, with_logprobs=True, layered_prefill=0)
    assert not any(step.kind == "layered" for step in stock.steps)
    runs = {
        name: run(stepped, asked, with_logprobs=True, **settings)
        for name, settings in (
            ("groups", {"layered_prefill": 1}),
            ("uneven", {"layered_num_groups": UNEVEN_GROUPS}),
            ("one layer a group", {"layered_num_groups": NUM_LAYERS}),
        )
    }
    with sequential(stepped):
        runs["sequential"] = run(stepped, asked, with_logprobs=True, layered_num_groups=UNEVEN_GROUPS)
    seen = Seen(
        methods=quantized_by(stepped),
        equal_stock={name: one.tokens == stock.tokens for name, one in runs.items()},
        furthest_logprob={name: furthest(one.logprobs, stock.logprobs) for name, one in runs.items()},
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
    return seen, stock


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


def one_by_one(
    stepped: SteppedScheduler, asked: list[list[int]]
) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and their log probabilities in SGLang's own scheduling with nothing beside a request."""
    stepped.drain()
    assert stepped.change({"layered_prefill": 0})
    outputs, logprobs = [], []
    for tokens in asked:
        rid = stepped.send(tokens, NUM_OUTPUTS, return_logprob=True)
        outputs += stepped.finish(rid)
        logprobs.append(list(stepped.reqs[rid].logprob.output_token_logprobs_val))
        stepped.drain()
    return outputs, logprobs


def compare_alone(seen: Seen, stepped: SteppedScheduler, asked: list[list[int]], stock: Run) -> None:
    """Note whether SGLang answers the same with nothing beside a request as in the run `stock`."""
    tokens, logprobs = one_by_one(stepped, asked)
    seen.equal_alone = tokens == stock.tokens
    seen.furthest_alone = furthest(logprobs, stock.logprobs)


def furthest(some: list[list[float]], others: list[list[float]]) -> float:
    """The largest distance of two numbers at the same place."""
    pairs = (pair for one, other in zip(some, others, strict=True) for pair in zip(one, other, strict=True))
    return max(abs(one - other) for one, other in pairs)
