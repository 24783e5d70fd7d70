"""The soak's own checks: each finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from soak_checks import all_violations, memory_verdict, read_log, wrong_answers
from soak_client import MemorySample, Outcome
from soak_plan import Abort, Job, SoakSpec, make_plan
from soak_replay import Expected

JOB = Job(index=0, prompt=0, num_outputs=3, pause_s=0.0)
IMPATIENT = Job(index=1, prompt=0, num_outputs=3, pause_s=0.0, abort=Abort("hang up", after_s=1.0))
QUIET = [Expected((7, 8, 9, 10), num_decided=4)]
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
    tied = [Expected((7, 8, 9), num_decided=1)]
    assert wrong_answers([Outcome(JOB, [7, 1, 2], "length")], tied) == []
    assert len(wrong_answers([Outcome(JOB, [6, 8, 9], "length")], tied)) == 1


def test_an_answer_of_the_release_in_a_larger_batch_is_right_too() -> None:
    several = [Expected((7, 8, 9), 3, in_company=frozenset({(7, 1, 2)}))]
    assert wrong_answers([Outcome(JOB, [7, 1, 2], "length")], several) == []
    assert len(wrong_answers([Outcome(JOB, [7, 1, 9], "length")], several)) == 1


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
    flat = memory_verdict(memory(1000, 1000, 1000, 1000))
    assert all_violations([], QUIET, flat, (BUSY, [])) == []
    assert len(all_violations([], QUIET, flat, (Counter(), []))) == 2
