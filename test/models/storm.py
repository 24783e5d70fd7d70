"""Random requests, aborts, pauses and scarce KV slots on a stepped scheduler, whose answers are known."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from sglang.srt.mem_cache.common import evict_from_tree_cache

from harness import SteppedScheduler
from prompts import prompt

LENGTHS = (3, 40, 90, 90, 170, 260)
MOST_OUTPUTS, MOST_LIVE, NUM_STEPS = 16, 6, 100
RESERVED = 700  # KV slots that nobody takes away: room for any one request with its drafts


@dataclass
class Weathered:
    """Whether every answer was the one that is given alone, and how much happened."""

    wrong: list[str] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=dict)


def storm(stepped: SteppedScheduler, seed: int = 1) -> Weathered:
    """Disturb requests at random; all must end, with what each answers alone, and leave every slot free."""
    return Storm(stepped, seed).run()


class Storm:
    def __init__(self, stepped: SteppedScheduler, seed: int) -> None:
        self._stepped, self._random = stepped, random.Random(seed)
        self._happened: Counter[str] = Counter()
        asked = [prompt(length, 80_000 + index) for index, length in enumerate(LENGTHS)]
        asked[3] = asked[2] + asked[3][:50]
        self._answers = [(tokens, self._alone(tokens)) for tokens in asked]
        self._sent: dict[str, tuple[list[int], int]] = {}  # the answer and how much of it is asked for
        self._aborted: set[str] = set()

    def run(self) -> Weathered:
        assert self._stepped.change({"layered_prefill": 1, "layered_num_groups": self._stepped.num_layers})
        for _ in range(NUM_STEPS):
            self._disturb()
            self._stepped.step()
            self._note()
        self._give_slots()
        self._stepped.step_until(lambda: not self._live)
        wrong = [rid for rid in self._sent if not self._is_right(rid)]
        self._stepped.drain()
        return Weathered(wrong, dict(self._happened))

    def _alone(self, tokens: list[int]) -> list[int]:
        self._stepped.drain()
        assert self._stepped.change({"layered_prefill": 0})
        [answer] = self._stepped.finish(self._stepped.send(tokens, MOST_OUTPUTS))
        self._stepped.drain()
        return answer

    @property
    def _live(self) -> list[str]:
        return [
            rid for rid in self._sent if rid not in self._aborted and not self._stepped.reqs[rid].finished()
        ]

    def _disturb(self) -> None:
        live, draw = self._live, self._random.random()
        if len(live) < MOST_LIVE and draw < 0.35:
            tokens, answer = self._random.choice(self._answers)
            num_outputs = self._random.randint(1, MOST_OUTPUTS)
            self._sent[self._stepped.send(tokens, num_outputs)] = (answer, num_outputs)
        elif live and draw < 0.4:
            rid = self._random.choice(live)
            self._aborted.update(other for other in self._sent if other.startswith(rid))
            self._stepped.abort(rid)
            self._happened["aborted"] += 1
        elif draw < 0.43:
            self._stepped.pause(self._random.choice(("retract", "in_place")))
            self._stepped.resume()
            self._happened["paused"] += 1
        elif draw < 0.5:
            self._take_slots()
        elif draw < 0.55:
            self._give_slots()

    def _note(self) -> None:
        self._happened["cohorts"] += len(self._stepped.loop.cohorts)
        retracted = sum(self._stepped.reqs[rid].retraction_count for rid in self._live)
        self._happened["retracted"] = max(retracted, self._happened["retracted"])

    def _take_slots(self) -> None:
        """Others than requests hold KV slots for a while; SGLang's own leak check is told of them."""
        scheduler = self._stepped.scheduler
        allocator = scheduler.token_to_kv_pool_allocator
        evict_from_tree_cache(scheduler.tree_cache, scheduler.max_total_num_tokens)
        count = max(allocator.available_size() - RESERVED, 0)
        slots = allocator.alloc(count) if count else None
        if slots is not None:
            self._expect(-len(slots))
            self._taken = [*getattr(self, "_taken", []), slots]
            self._happened["slots taken"] += 1

    def _give_slots(self) -> None:
        scheduler = self._stepped.scheduler
        for slots in getattr(self, "_taken", []):
            scheduler.token_to_kv_pool_allocator.free(slots)
            self._expect(len(slots))
        self._taken = []

    def _expect(self, more: int) -> None:
        """Tell the leak check; beside recurrent layers it goes by the allocator's own size."""
        scheduler = self._stepped.scheduler
        if scheduler.is_hybrid_ssm:
            scheduler.token_to_kv_pool_allocator.size += more
        else:
            scheduler.invariant_checker.max_total_num_tokens += more

    def _is_right(self, rid: str) -> bool:
        answer, num_outputs = self._sent[rid]
        output = list(self._stepped.reqs[rid].output_ids_through_stop)
        if rid in self._aborted:
            return output == answer[: len(output)]
        return output == answer[:num_outputs]
