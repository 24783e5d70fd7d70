"""The stepped scheduler with the exact model in it, and what must hold after every step, whoever steps it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq, BatchTokenIDOutput
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.mem_cache.common import evict_from_tree_cache

from cohort_events import open_cohorts
from conversations import Conversations
from exact_model import ExactModel
from harness import SteppedScheduler
from liveness import LateWork, Liveness, Turns, assert_whole
from sglang_layered.core import bounds


class ExactScheduler:
    """Sends requests whose answers are known, and checks every step.

    A request is live until it has its answer or its client was told of its abort. `launched` of a request
    counts the output tokens that were computed; SGLang knows them a step later with the overlap scheduler.
    """

    def __init__(self, stepped: SteppedScheduler, model: ExactModel) -> None:
        self.stepped = stepped
        self.scheduler = stepped.scheduler
        self.model = model
        self.prompts: dict[str, list[int]] = {}
        self.expected: dict[str, list[int]] = {}
        self.due: dict[str, int] = {}  # rows before the next token: prompt, and what retraction lost
        self.aborted: set[str] = set()  # by a client, or by SGLang for want of KV slots
        self.late = LateWork()
        self.live: list[str] = []
        self.answers: dict[str, list[int]] = {}  # as the clients see them
        self.ends: Counter[str] = Counter()
        self.taken: Any = None  # KV slots that a test took away
        self.conversations, self.liveness = Conversations(self), Liveness(stepped.scheduler)
        model.log.told, model.log.several = self._told, stepped.loop.controls.config.layered_max_parked > 0
        self.turns = Turns(stepped.loop, model)
        self.most_sat_out = self.most_asked = 0  # steps that a policy may let a decode or a prompt wait
        self.sat_out: Counter[str] = Counter()

    def answers_may_wait(self, most_asked: int) -> None:
        """A policy says who waits, at most so many steps a prompt, and who overtakes whom."""
        self.most_sat_out, self.most_asked = bounds.MOST_SAT_OUT, most_asked
        self.liveness.most_steps += most_asked
        self.turns.anybody = True

    def send(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        session: str | None = None,
        new: Sequence[int] | None = None,
        **params: Any,
    ) -> str:
        """Send a request, or a session's next turn: then `new` is what the client sends of the prompt."""
        rid = self.stepped.send(prompt if new is None else new, max_new_tokens, session, **params)
        self.prompts[rid], self.answers[rid], self.due[rid] = list(prompt), [], len(prompt)
        self.expected[rid] = self.model.expect(rid, prompt, max_new_tokens)
        self.live.append(rid)
        return rid

    def abort(self, rid: str) -> None:
        """Abort; SGLang takes every request whose id starts with this one's."""
        self._note_aborted({other for other in self.live if other.startswith(rid)})
        self.stepped.abort(rid)
        self.check()

    def abort_all(self) -> None:
        self._note_aborted(set(self.live))
        self.scheduler.process_input_requests([AbortReq(abort_all=True)])
        self.check()

    def _note_aborted(self, rids: set[str]) -> None:
        self.late.aborted(rids - self.aborted)
        self.aborted |= rids

    def pause(self, mode: str) -> None:
        self.stepped.pause(mode)
        self.check()

    def take_slots(self, num_slots: int) -> None:
        """Take KV slots away, free or cached ones, and tell SGLang's own leak check about it."""
        allocator = self.scheduler.token_to_kv_pool_allocator
        evict_from_tree_cache(self.scheduler.tree_cache, num_slots)
        slots = allocator.alloc(min(num_slots, allocator.available_size()))
        self.scheduler.invariant_checker.max_total_num_tokens -= len(slots)
        self.taken = slots.clone() if self.taken is None else torch.cat([self.taken, slots])

    def give_slots(self) -> None:
        if self.taken is not None:
            self.liveness.room_was_made()
            self.scheduler.token_to_kv_pool_allocator.free(self.taken)
            self.scheduler.invariant_checker.max_total_num_tokens += len(self.taken)
            self.taken = None

    def limit_running(self, most: int) -> None:
        """At most so many requests at a time from now on."""
        self.liveness.room_was_made()
        self.stepped.limit_running(most)

    def close_session(self, name: str) -> None:
        self.liveness.room_was_made()
        self.conversations.close(name)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            if not self.scheduler._engine_paused:
                self._step()

    def finish(self, *rids: str) -> None:
        """Step until these requests have ended."""
        for _ in range(400):
            if not set(rids) & set(self.live):
                return
            self.step()
        raise AssertionError(f"{set(rids) & set(self.live)} are not finished")

    def launched(self, rid: str) -> int:
        filled = self.model.log.filled.get(rid, 0)
        return 0 if filled < self.due[rid] else filled - len(self.prompts[rid]) + 1

    @property
    def cohort(self) -> tuple[str, ...]:
        """Requests in flight; in the cohort that was admitted first come first."""
        items = self.stepped.loop.cohorts.inflight
        return tuple(rid for item in items for rid in item.cohort.request_ids)

    @property
    def most_groups(self) -> int:
        return self.model.num_layers

    def _step(self) -> None:
        log, was_layered = self.model.log, self.stepped.loop.controls.is_layered
        before = {rid: self.launched(rid) for rid in self.live}
        cohort, unwanted = self.cohort, set(self.cohort) & self.aborted
        heard = {rid: len(self.answers[rid]) for rid in unwanted}
        log.done.clear()
        self.stepped.step()
        done = Counter(log.done)
        assert set(done.values()) <= {1}, f"computed twice: {done}"
        prompts = {rows.rid for rows in done if rows.is_prompt}
        expected = set(cohort) | (self.turns.short_ones(prompts))
        assert not cohort or prompts <= expected, f"{prompts} finish beside cohort {cohort}"
        self._check_decodes(before, {rows.rid for rows in done if not rows.is_prompt}, prompts, was_layered)
        self.check()
        assert not unwanted & set(self.live), f"nobody waits for {unwanted & set(self.live)} any more"
        assert heard == {rid: len(self.answers[rid]) for rid in unwanted}, "a token after the abort"
        self.late.after_step(self.aborted, {rows.rid for rows in done})
        self._check_counts(before)
        self.turns.after_step()
        self.liveness.after_step(bool(self.cohort))

    def _check_decodes(
        self, before: dict[str, int], decoded: set[str], prompts: set[str], was_layered: bool
    ) -> None:
        """Every request that was running has one more token, but beside a whole prompt in chunked mode."""
        waiting = {req.rid for req in self.scheduler.waiting_queue}
        for rid, launched in before.items():
            wanted = 1 <= launched < len(self.expected[rid])
            if not wanted or rid in waiting | self.aborted:
                continue
            if self._aborted_for_slots(rid):
                assert not prompts and not self.cohort, f"{rid} is aborted while a cohort holds slots"
                continue
            whole_prompt = prompts and not was_layered and not self.cohort
            self.sat_out[rid] = 0 if rid in decoded or whole_prompt else self.sat_out[rid] + 1
            assert self.sat_out[rid] <= self.most_sat_out, f"{rid} stood still with {launched} tokens"

    def _check_counts(self, before: dict[str, int]) -> None:
        """What SGLang knows is what was computed, at most one step late with the overlap scheduler."""
        overlap, waiting = self.scheduler.enable_overlap, {req.rid for req in self.scheduler.waiting_queue}
        for rid in set(self.live) - self.aborted - waiting:
            known, most = len(self.stepped.reqs[rid].output_ids), len(self.expected[rid])
            least = before[rid] if overlap else self.launched(rid)
            assert min(least, most) <= known, f"{rid}: {known} tokens known, {least} computed a step ago"
            if rid not in self.model.log.open and self.launched(rid):
                assert known <= self.launched(rid), f"{rid}: {known} tokens known, {self.launched(rid)} made"

    def check(self) -> None:
        """What must hold between any two operations."""
        self._listen()
        for req in self.scheduler.waiting_queue:
            self.model.log.forget(req.rid)
            self.due[req.rid] = len(self.prompts[req.rid]) + len(req.output_ids)
        for rid in [rid for rid in self.live if self._has_ended(rid)]:
            self.live.remove(rid)
            self.model.log.forget(rid)
            self._check_answer(rid)
            self.conversations.ended(rid, answered=rid not in self.aborted)
        loop, log = self.stepped.loop, self.model.log
        assert {rows.rid for rows, _ in log.open.values()} <= set(self.cohort)
        begun = {rid: layer for rid, layer in self._in_flight().items() if layer}
        assert begun == {rid: layer for rid, (_, layer) in log.open.items()}
        assert {rid for rid, _ in loop.cohorts.ledger} == set(self.cohort)
        for item in loop.cohorts.inflight:
            assert tuple(req.rid for req in item.reqs) == item.cohort.request_ids

    def _in_flight(self) -> dict[str, int]:
        """Requests between two layer groups, and the layer that is next."""
        items = self.stepped.loop.cohorts.inflight
        return {rid: item.cohort.group.start for item in items for rid in item.cohort.request_ids}

    def _has_ended(self, rid: str) -> bool:
        return bool(self.stepped.reqs[rid].finished() or self.ends[rid])

    def _aborted_for_slots(self, rid: str) -> bool:
        """SGLang ends the last running request when not even it has room, and nothing else holds slots."""
        ends = (self.stepped.reqs[rid].to_finish, self.stepped.reqs[rid].finished_reason)
        if not any(isinstance(end, FINISH_ABORT) and "Out of memory" in end.message for end in ends):
            return False
        assert self.taken is not None, f"{rid} is aborted for want of slots"
        self._note_aborted({rid})
        return True

    def _check_answer(self, rid: str) -> None:
        output, expected = list(self.stepped.reqs[rid].output_ids), self.expected[rid]
        if rid in self.aborted or self._aborted_for_slots(rid):
            assert output == expected[: len(output)]
        else:
            assert output == expected, f"{rid} answers {output}, {expected} expected"
            assert self.answers[rid] == expected, f"{rid}'s client got {self.answers[rid]}"

    def _told(self) -> set[str]:
        """Whose clients were told of an abort in this step."""
        return {message.rid for message in self.stepped.tokenizer.sent if isinstance(message, AbortReq)}

    def _listen(self) -> None:
        """Hear what clients hear."""
        for message in self.stepped.detokenizer.sent:
            assert isinstance(message, BatchTokenIDOutput)
            for rid, tokens, reason in zip(
                message.rids, message.output_ids, message.finished_reasons, strict=True
            ):
                self.answers[rid] += tokens
                self.ends[rid] += reason is not None
        for message in self.stepped.tokenizer.sent:
            if isinstance(message, AbortReq):
                self.ends[message.rid] += 1
        self.stepped.detokenizer.sent.clear()
        self.stepped.tokenizer.sent.clear()

    def settle(self) -> None:
        """No more disturbances: all end within a bound, each client heard one end, and no slot is lost."""
        self.give_slots()
        self.stepped.resume()
        for _ in range(self._most_steps()):
            if not self.live:
                break
            self.step()
        assert not self.live, f"{self.live} starve; {self.describe()}"
        self.wait_until_idle()
        assert set(self.ends) == set(self.prompts) and set(self.ends.values()) <= {1}, self.ends
        assert not +open_cohorts(self.stepped.events)
        self.conversations.close_all()
        assert_whole(self.scheduler, self.conversations.stuck, self.running_batches())

    def wait_until_idle(self) -> None:
        """All have ended; what SGLang still does after the last result is done within few steps."""
        self.stepped.step_until(self.scheduler.is_fully_idle, limit=5)
        self.step()

    def running_batches(self) -> list[Any]:
        """The running batches, whose `batch_is_full` must be clear when nothing runs."""
        return [self.scheduler.running_batch]

    def describe(self) -> str:
        """Where every request is."""
        batches = [(batch.batch_is_full, [req.rid for req in batch.reqs]) for batch in self.running_batches()]
        waiting = [req.rid for req in self.scheduler.waiting_queue]
        return f"running {batches}, cohorts {self.cohort}, waiting {waiting}"

    def _most_steps(self) -> int:
        """Twice the steps that the live requests need one after another, in the smallest chunks."""
        chunk = self.scheduler.chunked_prefill_size
        chunks = sum(-(-len(self.prompts[rid]) // chunk) + 1 for rid in self.live)
        tokens = sum(len(self.expected[rid]) * (1 + self.most_sat_out) for rid in self.live)
        tokens += self.most_asked * (chunks + len(self.live))
        return 2 * (chunks * self.model.num_layers * (1 + self.model.log.several) + tokens) + 10
