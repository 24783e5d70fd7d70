"""The soak's own checks: each finds what it is there to find."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from ties import TiedModel
from tiny_models import tiny_model

from soak_asks import AbortAll, Ask, Outcome, abort_read_s
from soak_checks import all_violations, memory_verdict, read_log, too_gentle, wrong_answers
from soak_desk import MemorySample, Played
from soak_events import NewEvents, late_steps
from soak_plan import Abort, SoakSpec, make_plan
from soak_replay import Expected, longest_outputs

PROMPT = (1, 2)
JOB = Ask("soak-1", PROMPT, 3)
IMPATIENT = Ask("soak-2", PROMPT, 3, Abort("hang up", after_s=1.0))
QUIET = {PROMPT: Expected((7, 8, 9, 10), num_decided=4)}
BUSY = Counter({"retractions": 1, "cohorts dropped: paused": 1})


def memory(*mib: int) -> list[MemorySample]:
    return [MemorySample(float(index), index, each * 2**20) for index, each in enumerate(mib)]


def test_a_plan_is_drawn_from_its_seed_alone() -> None:
    assert make_plan(SoakSpec.of(300, seed=7)) == make_plan(SoakSpec.of(300, seed=7))
    assert make_plan(SoakSpec.of(300, seed=7)) != make_plan(SoakSpec.of(300, seed=8))


def test_about_a_fifth_of_the_requests_is_aborted_half_of_them_by_hanging_up() -> None:
    aborts = [job.abort for job in make_plan(SoakSpec.of(10_000)).jobs if job.abort is not None]
    assert 0.17 < len(aborts) / 10_000 < 0.23
    assert 0.45 < sum(abort.kind == "hang up" for abort in aborts) / len(aborts) < 0.55


def test_right_answers_pass() -> None:
    outcomes = [Outcome(JOB, [7, 8, 9], "length"), Outcome(IMPATIENT, [7, 8, 9], "length")]
    outcomes += [Outcome(IMPATIENT, tokens, "hung up") for tokens in ([], [7], [7, 8])]
    assert wrong_answers(outcomes, QUIET) == []


def test_wrong_answers_are_found() -> None:
    for job, tokens, ending in [
        (JOB, [7, 8, 1], "length"),
        (JOB, [7, 8], "length"),
        (JOB, [7, 8], "abort"),
        (JOB, [], "none"),
        (JOB, [7, 8, 9, 10], "length"),
        (IMPATIENT, [8], "hung up"),
        (IMPATIENT, [7, 8], "error 500"),
    ]:
        assert len(wrong_answers([Outcome(job, tokens, ending)], QUIET)) == 1, (tokens, ending)


def test_tokens_after_a_near_tie_are_not_compared() -> None:
    tied = {PROMPT: Expected((7, 8, 9), num_decided=1)}
    assert wrong_answers([Outcome(JOB, [7, 1, 2], "length")], tied) == []
    assert len(wrong_answers([Outcome(JOB, [6, 8, 9], "length")], tied)) == 1


def test_an_answer_of_the_release_in_a_larger_batch_is_right_too() -> None:
    several = {PROMPT: Expected((7, 8, 9), 3, in_company=frozenset({(7, 1, 2)}))}
    assert wrong_answers([Outcome(JOB, [7, 1, 2], "length")], several) == []
    assert len(wrong_answers([Outcome(JOB, [7, 1, 9], "length")], several)) == 1


def test_a_tie_between_experts_explains_an_answer_and_nothing_else() -> None:
    """Prompt 100 of the soak of 5,000 requests: at token 508 layer 3 finds two experts equal to 1.3e-6."""
    prompt = make_plan(SoakSpec.of(5000)).prompts[100]
    model = TiedModel(tiny_model("qwen3_moe"))
    quiet = model.greedy(prompt, 9)
    assert (3, 508) in model.ties([*prompt, *quiet])
    answers = model.answers(prompt, quiet)
    assert (793, 320, 250, 331, 363, 664, 567, 708, 320) in answers and len(answers) <= 24
    expected = Expected(quiet, len(quiet), after_ties=answers)
    assert expected.allows(quiet) and expected.allows([793, 320, 250, 331, 363, 664, 567])
    assert not expected.allows([793, 320, 250, 331, 363, 664, 1])


def test_growing_memory_is_found_and_a_warm_up_is_not_growth() -> None:
    assert memory_verdict(memory(500, 800, 1000, 1001, 1000, 1001, 1000, 1001)).is_flat
    assert not memory_verdict(memory(1000, 1000, 1010, 1030, 1050, 1070, 1090, 1110)).is_flat


def test_bad_lines_and_hard_cases_are_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "KV cache pool is full. Retract requests. #retracted_reqs: 1\n"
        "Cohort of 2 requests dropped at group 1 of 8: KV pool full\n"
        "token_to_kv_pool_allocator memory leak detected!\n"
    )
    counts, bad = read_log(log)
    assert counts == {"retractions": 1, "cohorts dropped: KV pool full": 1}
    assert len(bad) == 1


def test_a_soak_in_which_nothing_hard_happened_fails() -> None:
    assert too_gentle(BUSY) == []
    assert len(too_gentle(Counter())) == 2


def test_all_violations_come_together() -> None:
    flat, growing = memory_verdict(memory(1000, 1000, 1000, 1000)), memory_verdict(memory(1, 1, 1, 9))
    assert all_violations(Played(), QUIET, flat, [], []) == []
    played = Played(outcomes=[Outcome(JOB, [7], "length")])
    assert len(all_violations(played, QUIET, growing, ["a bad line"], ["a late answer"])) == 4


def aborted(asked_s: float, ended_s: float, read_s: float | None = None) -> Outcome:
    sent = read_s is not None
    return Outcome(JOB, [], "abort", asked_s, ended_s, aborted_s=read_s, is_abort_sent=sent)


def test_an_abort_of_everything_excuses_only_requests_that_were_open() -> None:
    alls = [AbortAll(sent_s=10.0, read_s=11.0)]
    assert wrong_answers([aborted(9.0, 10.5), aborted(10.5, 12.0)], QUIET, alls) == []
    assert len(wrong_answers([aborted(8.0, 9.0)], QUIET, alls)) == 1
    assert len(wrong_answers([aborted(12.0, 13.0)], QUIET, alls)) == 1


def test_the_last_abort_that_may_have_hit_counts() -> None:
    alls = [AbortAll(10.0, 11.0), AbortAll(20.0, 21.0)]
    assert abort_read_s(aborted(9.0, 30.0), alls) == 21.0
    assert abort_read_s(aborted(9.0, 15.0, read_s=12.0), alls) == 12.0
    assert abort_read_s(aborted(12.0, 15.0), alls) is None


def step(start_s: float, *, decode: tuple[str, ...] = (), prompt: tuple[str, ...] = ()) -> dict[str, object]:
    return {
        "event": "step_done",
        "start_s": start_s,
        "decode": dict.fromkeys(decode, 1),
        "prompt": dict.fromkeys(prompt, 1),
    }


def test_steps_after_an_abort_are_late_but_for_one() -> None:
    ended = aborted(0.0, 9.0, read_s=5.0)
    before = [step(4.0, prompt=("soak-1",)), step(4.5, prompt=("soak-1", "soak-2"))]
    after = [step(5.5, prompt=("soak-1",)), step(6.0, prompt=("soak-2",)), step(7.0, decode=("soak-1",))]
    assert late_steps([ended], [], iter([*before, *after[:2]])) == []
    assert len(late_steps([ended], [], iter([*before, *after]))) == 1
    assert late_steps([aborted(0.0, 9.0)], [], iter([*before, *after])) == []


def test_a_request_whose_stream_went_on_after_its_end_is_late() -> None:
    outcome = Outcome(JOB)
    event = {"output_ids": [7, 8, 9], "meta_info": {"finish_reason": {"type": "length"}}}
    outcome.hear(event)
    assert wrong_answers([outcome], QUIET) == []
    outcome.hear(event)
    [line] = wrong_answers([outcome], QUIET)
    assert "late" in line


def test_prompts_are_replayed_with_the_longest_output_wanted() -> None:
    outcomes = [Outcome(JOB), Outcome(Ask("soak-3", PROMPT, 9)), Outcome(Ask("soak-4", (5,), 1))]
    assert longest_outputs(outcomes) == {PROMPT: 9, (5,): 1}


def test_the_tail_of_an_event_file_begins_where_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "old"}\n')
    tail = NewEvents(path)
    with path.open("a") as file:
        file.write('{"event": "new"}\n{"event": "half')
    assert asyncio.run(tail.wait_for(lambda event: event["event"] != "none", 9)) == {"event": "new"}
    assert asyncio.run(tail.wait_for(lambda event: True, 0)) is None


def test_conversations_leave_room_in_the_pool_for_the_longest_prompt() -> None:
    spec = SoakSpec.of(10_000)
    longest = [0] * spec.num_talkers
    for conversation in make_plan(spec).conversations:
        said = sum(len(turn.tokens) + turn.num_outputs for turn in conversation.turns)
        longest = sorted([*longest, said])[1:]
    assert sum(longest) + spec.max_prompt_tokens + spec.max_output_tokens < spec.pool_tokens
