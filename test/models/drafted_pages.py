"""Drafts where KV lies in pages of several tokens: prefixes that end about a page's edge, and who leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from harness import SteppedScheduler
from prompts import prompt

NUM_OUTPUTS = 12
SEEDS = count(60_000)


@dataclass
class Paged:
    """Whether tokens and right drafts are those of requests alone; how many tokens of each were cached."""

    tokens: dict[str, bool] = field(default_factory=dict)
    drafts: dict[str, bool] = field(default_factory=dict)
    cached_tokens: dict[str, int] = field(default_factory=dict)


def check_pages(stepped: SteppedScheduler, page: int, num_background: int) -> Paged:
    """Ask for prompts of all kinds beside a request that decodes; at the end of each nothing may be lost."""
    return _Pages(stepped, page, num_background).check()


class _Pages:
    def __init__(self, stepped: SteppedScheduler, page: int, num_background: int) -> None:
        self._stepped, self._page, self._num_background = stepped, page, num_background
        self._groups = {"layered_prefill": 1, "layered_num_groups": stepped.num_layers}
        self._seen = Paged()
        self._shared = prompt(2 * page + 7, next(SEEDS))
        self._background = ""

    def check(self) -> Paged:
        for more in (-1, 0, 1):
            self._hit(f"prefix of a page and {more}", self._page + more)
        self._hit("prefix of two pages", 2 * self._page)
        self._follow()
        for group in range(1, self._stepped.num_layers):
            self._leave(group)
        self._overtake()
        return self._seen

    def _alone(self, tokens: list[int], num_outputs: int = NUM_OUTPUTS) -> tuple[list[int], tuple[int, int]]:
        """What SGLang's own scheduling answers with nothing cached."""
        self._rest()
        assert self._stepped.change({"layered_prefill": 0})
        rid = self._stepped.send(tokens, num_outputs)
        [answer] = self._stepped.finish(rid)
        drafts = self._drafts(rid)
        self._stepped.drain()
        return answer, drafts

    def _rest(self) -> None:
        """Who decodes is ended, and all pages are there again, those behind its drafts, too."""
        if self._background:
            self._stepped.abort(self._background)
        self._background = ""
        self._stepped.drain()

    def _drafts(self, rid: str) -> tuple[int, int]:
        req = self._stepped.reqs[rid]
        return req.spec_verify_ct, req.spec_num_correct_drafts

    def _begin(self) -> None:
        """Somebody decodes, and nothing of prompts to come is cached."""
        self._rest()
        assert self._stepped.change(self._groups)
        self._background = self._stepped.send(prompt(20, next(SEEDS)), self._num_background)
        self._stepped.step(3)

    def _note(self, what: str, rid: str, alone: tuple[list[int], tuple[int, int]]) -> None:
        self._stepped.step_until(lambda: self._stepped.reqs[rid].output_ids)
        assert not self._stepped.reqs[self._background].finished(), "the prompt ran beside nobody"
        [answer] = self._stepped.finish(rid)
        self._seen.tokens[what] = answer == alone[0]
        self._seen.drafts[what] = self._drafts(rid) == alone[1]
        self._seen.cached_tokens[what] = self._stepped.reqs[rid].cached_tokens

    def _hit(self, what: str, num_shared: int) -> None:
        """A prompt's first tokens were another's, which came beside the background, too."""
        asked = self._shared[:num_shared] + prompt(40, next(SEEDS))
        alone = self._alone(asked)
        self._begin()
        self._stepped.finish(self._stepped.send(self._shared, 2))
        self._note(what, self._stepped.send(asked, NUM_OUTPUTS), alone)

    def _follow(self) -> None:
        """A prompt goes on from an answer that drafts have made, up to a page's edge and beyond."""
        asked = prompt(self._page - 3, next(SEEDS))
        answer, _ = self._alone(asked, NUM_OUTPUTS)
        for num_kept in (2, 3, 4, NUM_OUTPUTS):
            follows = asked + answer[:num_kept] + prompt(30, next(SEEDS))
            alone = self._alone(follows)
            self._begin()
            self._stepped.finish(self._stepped.send(asked, NUM_OUTPUTS))
            self._note(f"{num_kept} of an answer", self._stepped.send(follows, NUM_OUTPUTS), alone)

    def _leave(self, group: int) -> None:
        """Of a cohort one is aborted before this group; what stays answers, and all pages come back."""
        stays, leaves = (self._shared[: self._page + 3] + prompt(30, next(SEEDS)) for _ in range(2))
        alone = self._alone(stays)
        self._begin()
        self._stepped.finish(self._stepped.send(self._shared, 2))
        rid, other = (self._stepped.send(tokens, NUM_OUTPUTS) for tokens in (stays, leaves))
        self._stepped.step_until(lambda: self._stepped.next_group == group)
        self._stepped.abort(other)
        self._note(f"beside one that leaves before group {group}", rid, alone)
        last = self._stepped.send(leaves, NUM_OUTPUTS)
        self._stepped.step_until(lambda: self._stepped.next_group == group)
        self._stepped.abort(last)
        self._rest()

    def _overtake(self) -> None:
        """Short prompts go before a long one in flight; all start with the same pages."""
        long = self._shared[: 2 * self._page] + prompt(120, next(SEEDS))
        short = [self._shared[: self._page + more] + prompt(9, next(SEEDS)) for more in (0, 3)]
        alone = [self._alone(tokens) for tokens in (long, *short)]
        assert self._stepped.change({"layered_max_parked": 1})
        self._begin()
        self._stepped.finish(self._stepped.send(self._shared, 2))
        rids = [self._stepped.send(long, NUM_OUTPUTS)]
        self._stepped.step_until(lambda: self._stepped.next_group == 1)
        rids += [self._stepped.send(tokens, NUM_OUTPUTS) for tokens in short]
        for what, rid, expected in zip(("overtaken", "short", "short, too"), rids, alone, strict=True):
            self._note(what, rid, expected)
        self._rest()
        assert self._stepped.change({"layered_max_parked": 0})
