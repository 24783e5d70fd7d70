"""What may happen to a cohort whose layers have states, against SGLang's own scheduling in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness import SteppedScheduler
from prompts import prompt
from sglang_layered.core.events import DropReason

NUM_OUTPUTS = 6
NUM_BACKGROUND = 26  # tokens of the request that decodes beside; it must outlast a prompt that starts twice
BACKGROUND = prompt(20, 70_001)
PREFIX = prompt(130, 70_002)
HITS, MISSES = "with a prefix", "without a prefix"
ASKED = {HITS: PREFIX + prompt(60, 70_003), MISSES: prompt(90, 70_004), "in chunks": prompt(300, 70_005)}
FIRST_TURN, SECOND_TURN = prompt(70, 70_006), prompt(50, 70_007)


@dataclass
class Seen:
    """Whether tokens were stock's, and how many of a prompt's were found in the prefix cache."""

    equal: dict[str, bool] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)


def check_states(
    stepped: SteppedScheduler,
    groups: Iterable[int],
    num_background: int = NUM_BACKGROUND,
    *,
    has_sessions: bool = True,
) -> Seen:
    """Drop a cohort before these groups, cut it, retract it; with a prefix, in chunks, in a session."""
    checks = Checks(stepped, num_background)
    for group in groups:
        checks.compare(HITS, f"dropped before group {group}", checks.drop, group)
    checks.compare(MISSES, "dropped", checks.drop, 3)
    checks.compare(HITS, "retracted", checks.retract, 4)
    checks.compare("in chunks", "dropped", checks.drop_second_chunk, 2)
    checks.one_leaves()
    if has_sessions and not stepped.scheduler.server_args.disable_radix_cache:
        checks.session()  # without the cache SGLang takes no second turn
    return checks.seen


def found_again(stepped: SteppedScheduler, num_outputs: int) -> dict[str, int | bool]:
    """An answer that came beside cohorts is asked about: how much of it was cached, and if that was right."""
    asked, beside = prompt(50, 70_011), [prompt(90, 70_012 + index) for index in range(2)]
    stepped.drain()
    assert stepped.change({"layered_prefill": 1, "layered_num_groups": stepped.num_layers})
    first = stepped.send(asked, num_outputs)
    for tokens in beside:
        stepped.step(3)
        stepped.send(tokens, NUM_OUTPUTS)
    [answer] = stepped.finish(first)
    follows = asked + answer[: num_outputs - 1] + prompt(20, 70_014)
    rid = stepped.send(follows, NUM_OUTPUTS)
    [hit] = stepped.finish(rid)
    cached_tokens = stepped.reqs[rid].cached_tokens
    stepped.drain()
    assert stepped.change({"layered_prefill": 0})
    [alone] = stepped.finish(stepped.send(follows, NUM_OUTPUTS))
    return {"cached_tokens": cached_tokens, "equal": hit == alone}


class Checks:
    """The checks on one scheduler; every group has one layer."""

    def __init__(self, stepped: SteppedScheduler, num_background: int) -> None:
        self._stepped, self._num_background = stepped, num_background
        self.seen = Seen()
        self._stock_mode()
        self._alone(PREFIX, 1)
        self._stock = {name: self._alone(tokens) for name, tokens in ASKED.items()}
        self._background = self._alone(BACKGROUND, num_background)

    def compare(self, name: str, what: str, happens: Callable[[], None], group: int) -> None:
        """Something happens when a prompt's next group is this one; it answers as stock all the same."""
        background = self._begin()
        rid = self._stepped.send(ASKED[name], NUM_OUTPUTS)
        self._until(group)
        happens()
        tokens, others = self._stepped.finish(rid, background)
        what = f"{name}, {what}"
        self.seen.equal[what] = tokens == self._stock[name] and others == self._background
        self.seen.cached_tokens[what] = self._stepped.reqs[rid].cached_tokens

    def drop(self) -> None:
        """The cohort starts again."""
        self._stepped.loop.drop(DropReason.PAUSED)

    def drop_second_chunk(self) -> None:
        """The prompt's first chunk is done, its second starts again."""
        self._until(1, before=2)
        self._until(3)
        self.drop()

    def retract(self) -> None:
        """All requests start again."""
        self._stepped.pause("retract")
        self._stepped.resume()

    def one_leaves(self) -> None:
        """Of two prompts in a cohort one is aborted; the other answers as stock, and so does what hits it."""
        self._begin()
        asked = prompt(95, 70_010)
        stays = self._stepped.send(asked, NUM_OUTPUTS)
        leaves = self._stepped.send(prompt(100, 70_008), NUM_OUTPUTS)
        self._until(3)
        self._stepped.abort(leaves)
        [tokens] = self._stepped.finish(stays)
        follows = asked + tokens + prompt(20, 70_009)
        rid = self._stepped.send(follows, NUM_OUTPUTS)
        [hit] = self._stepped.finish(rid)
        self.seen.cached_tokens["what follows it"] = self._stepped.reqs[rid].cached_tokens
        self._stock_mode()
        self.seen.equal["beside one that leaves"] = tokens == self._alone(asked)
        self._stock_mode()
        self.seen.equal["what follows it"] = hit == self._alone(follows)

    def session(self) -> None:
        """A streaming session's second turn is dropped: the slot's states have moved on in some layers."""
        outputs = []
        for has_drop in (False, True):
            if has_drop:
                self._begin()
            else:
                self._stock_mode()
            self._stepped.open_session("s")
            turns = [self._stepped.finish(self._stepped.send(FIRST_TURN, NUM_OUTPUTS, session="s"))[0]]
            rid = self._stepped.send(SECOND_TURN, NUM_OUTPUTS, session="s")
            if has_drop:
                self._until(3)
                self.drop()
            outputs.append(turns + self._stepped.finish(rid))
            self._stepped.close_session("s")
        self.seen.equal["a turn of a session, dropped"] = outputs[0] == outputs[1]

    def _begin(self) -> str:
        """An empty cache with the prefix, and one request that decodes."""
        self._stepped.drain()
        self._soil()
        assert self._stepped.change({"layered_prefill": 1, "layered_num_groups": self._stepped.num_layers})
        self._alone(PREFIX, 1)
        background = self._stepped.send(BACKGROUND, self._num_background)
        self._stepped.step(3)
        return background

    def _soil(self) -> None:
        """Fill all states with noise: an earlier run's would stand for ones that were not kept or cleared."""
        if not hasattr(self._stepped.scheduler.req_to_token_pool, "mamba_pool"):
            return
        states = self._stepped.scheduler.req_to_token_pool.mamba_pool.mamba_cache
        for tensor in (states.temporal, *states.conv):
            tensor.normal_()

    def _stock_mode(self) -> None:
        self._stepped.drain()
        assert self._stepped.change({"layered_prefill": 0})

    def _until(self, group: int, before: int | None = None) -> None:
        if before is not None:
            self._stepped.step_until(lambda: self._stepped.next_group not in (before, None))
        self._stepped.step_until(lambda: self._stepped.next_group == group)

    def _alone(self, tokens: list[int], num_outputs: int = NUM_OUTPUTS) -> list[int]:
        [outputs] = self._stepped.finish(self._stepped.send(tokens, num_outputs))
        return outputs
