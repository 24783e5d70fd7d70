"""Figures of a sweep's pictures against a slow recount from the records' JSON."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from statistics import mean, quantiles

import pytest

from bench_sweeps import ARMS, write_sweep
from sglang_layered_lab.bench import figure_data
from sglang_layered_lab.bench.figure_data import SINCE_DUE, SINCE_SENT, token_streams
from sglang_layered_lab.bench.sweep_result import LIMITS, CellResult, SweepResult

THREE = {name: ARMS[name] for name in ("default", "mixed-512", "layered-4")}


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    fail = [("layered-4", 1, 2), ("mixed-512", 0, 0)]
    folder = tmp_path_factory.mktemp("rates") / "sweep"
    return write_sweep(folder, arms=THREE, rates=(1.7, 0.8), num_requests=8, fail=fail)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return write_sweep(
        tmp_path_factory.mktemp("beside") / "sweep", num_background=2, num_requests=6, joules=9.0
    )


def raw(cell: CellResult) -> list[dict]:
    """Rounds of a record as they are in its file."""
    return json.loads(gzip.decompress(cell.record_path.read_bytes()))["repetitions"]


def gaps_of(request: dict) -> list[float]:
    """Gap before every token after the first; tokens that came together have none between them."""
    times = []
    for time_s, count in request["arrivals"]:
        times += [time_s] * (count - len(times))
    return [later - earlier for earlier, later in pairwise(times)]


def ttft_of(request: dict) -> float:
    return request["arrivals"][0][0] - request["due_s"]


def finished(repetition: dict) -> list[dict]:
    return [each for each in repetition["requests"] if each["error"] is None]


def p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def test_pareto_points_are_means_over_rounds_of_raw_times(rates: SweepResult) -> None:
    point = {"load.rate_per_s": 1.7}
    points = figure_data.pareto_points(rates.at(point)).to_dict("records")
    assert [each["label"] for each in points] == ["8192", "chunk 512", "G=4"]
    assert list(figure_data.gap_scalars(rates.at(point))) == ["tbt_worst", "tbt_p99"]
    seen = {}
    for cell, drawn in zip(rates.at(point), points, strict=True):
        rounds = [finished(each) for each in raw(cell)]
        gaps = [[gap for request in each for gap in gaps_of(request)] for each in rounds]
        expected = (
            mean(mean(ttft_of(request) for request in each) for each in rounds),
            mean(max(each) for each in gaps),
            mean(p99(each) for each in gaps),
        )
        seen[cell.arm] = expected
        assert (drawn["ttft_s"], drawn["worst_tbt_s"], drawn["p99_tbt_s"]) == pytest.approx(expected)
    for place, key in ((1, "worst_tbt_s"), (2, "p99_tbt_s")):
        for (arm, ours), drawn in zip(seen.items(), points, strict=True):
            beaten = any(
                theirs[0] <= ours[0] and theirs[place] <= ours[place]
                for other, theirs in seen.items()
                if other != arm
            )
            assert drawn["on_front"][key] == (not beaten)


def test_pareto_is_of_the_background_where_there_is_one(beside: SweepResult) -> None:
    points = figure_data.pareto_points(beside.cells)
    assert list(figure_data.gap_scalars(beside.cells)) == ["beside_worst", "beside_p99"]
    for cell, drawn_s in zip(beside.cells, points.worst_tbt_s, strict=True):
        worst = []
        for repetition in raw(cell):
            spans = [(each["sent_s"], each["arrivals"][0][0]) for each in repetition["requests"]]
            times = [[arrival[0] for arrival in each["arrivals"]] for each in repetition["background"]]
            gaps = [
                later - earlier
                for stream in times
                for earlier, later in pairwise(stream)
                if any(later > sent and earlier < first for sent, first in spans)
            ]
            worst.append(max(gaps))
        assert drawn_s == pytest.approx(mean(worst))


def test_one_late_token_beats_an_arm_in_the_worst_gap_alone(tmp_path: Path) -> None:
    result = write_sweep(tmp_path / "sweep", arms=THREE, rounds=1, num_requests=8)
    path = result.of_arm("layered-4")[0].record_path
    record = json.loads(gzip.decompress(path.read_bytes()))
    record["repetitions"][0]["requests"][0]["arrivals"][-1][0] += 5.0
    path.write_bytes(gzip.compress(json.dumps(record).encode()))
    drawn = figure_data.pareto_points(SweepResult.read(tmp_path / "sweep").cells).iloc[2]
    assert drawn["worst_tbt_s"] > 5 > drawn["p99_tbt_s"]
    assert drawn["on_front"] == {"worst_tbt_s": False, "p99_tbt_s": True}


def test_an_arm_without_a_value_has_no_place(tmp_path: Path) -> None:
    fail = [("default", index, request) for index in range(2) for request in range(3)]
    result = write_sweep(tmp_path / "sweep", arms=THREE, rounds=2, num_requests=3, fail=fail)
    points = figure_data.pareto_points(result.cells)
    assert points.arm[points.ttft_s.isna()].tolist() == ["default"]


def test_attainment_counts_requests_of_all_rounds(rates: SweepResult) -> None:
    [group] = figure_data.rate_groups(rates)
    rows = figure_data.over_rates(rates, group, "attainment")
    assert group == {}
    assert list(dict.fromkeys(rows.label)) == ["default 8192", "mixed chunk 512", "layered G=4"]
    for arm, of_arm in rows.groupby("arm", sort=False):
        assert of_arm["load.rate_per_s"].tolist() == [0.8, 1.7]
        for _, drawn in of_arm.iterrows():
            [cell] = rates.at({"load.rate_per_s": drawn["load.rate_per_s"]})[rates.arms.index(arm) :][:1]
            num_met = num_due = 0
            for repetition in raw(cell):
                start_s, end_s = repetition["window_s"]
                for request in repetition["requests"]:
                    if start_s <= request["due_s"] < end_s:
                        num_due += 1
                        in_time = ttft_of(request) <= 2.5 and all(gap <= 0.35 for gap in gaps_of(request))
                        num_met += request["error"] is None and in_time
            assert cell.counts_within("attainment") == (num_met, num_due) == (num_met, 24)
            assert drawn["attainment"] == pytest.approx(num_met / num_due)
            ends = drawn["attainment_low"], drawn["attainment_high"]
            assert ends == pytest.approx(wilson(num_met, num_due), abs=1e-6)


def wilson(num_met: int, num_total: int) -> tuple[float, float]:
    """The textbook's formula."""
    z, share = 1.959963984540054, num_met / num_total
    centre = (share + z * z / (2 * num_total)) / (1 + z * z / num_total)
    reach = z / (1 + z * z / num_total)
    reach *= (share * (1 - share) / num_total + z * z / (4 * num_total**2)) ** 0.5
    return centre - reach, centre + reach


def test_average_batch_is_time_spent_decoding_over_time(rates: SweepResult) -> None:
    drawn = figure_data.over_rates(rates, {}, "attainment").iloc[0]
    [cell] = [each for each in rates.of_arm("default") if each.point["load.rate_per_s"] == 0.8]
    batches = []
    for repetition in raw(cell):
        start_s, end_s = repetition["window_s"]
        spans = [(each["arrivals"][0][0], each["arrivals"][-1][0]) for each in repetition["requests"]]
        held_s = sum(max(0.0, min(last, end_s) - max(first, start_s)) for first, last in spans)
        batches.append(held_s / (end_s - start_s))
    assert drawn["decode_batch"] == pytest.approx(mean(batches))


def test_limits_apart_are_counted_apart(rates: SweepResult, tmp_path: Path) -> None:
    within = {name: rates.cells[0].counts_within(name)[0] for name in LIMITS}
    assert within["attainment"] <= min(within["attainment_ttft"], within["attainment_tbt"])
    without = write_sweep(tmp_path / "s", arms=THREE, rounds=1, num_requests=2, with_limits=False).cells[0]
    assert without.counts_within("attainment") == (0, 0) and without.interval("attainment") is None


def test_ttft_over_the_rate(rates: SweepResult) -> None:
    for arm, drawn in figure_data.over_rates(rates, {}, "ttft_mean").groupby("arm", sort=False):
        cells = sorted(rates.of_arm(arm), key=lambda cell: cell.point["load.rate_per_s"])
        expected = [mean(mean(map(ttft_of, finished(each))) for each in raw(cell)) for cell in cells]
        assert drawn["load.rate_per_s"].tolist() == [0.8, 1.7]
        assert drawn.ttft_mean.tolist() == pytest.approx(expected)
        assert drawn.ttft_mean.between(drawn.ttft_mean_low, drawn.ttft_mean_high).all()


def test_expert_bytes_are_per_request_by_phase(rates: SweepResult) -> None:
    rows = figure_data.expert_bytes_of(rates.at({"load.rate_per_s": 0.8})).set_index("arm")
    for name in THREE:
        for phase in ("prompt", "hybrid", "decode"):
            assert rows[phase][name] == pytest.approx(1e9 * ARMS[name].gigabytes.get(phase, 0.0))
    assert rows.expert_bytes.tolist() == pytest.approx((rows.prompt + rows.hybrid + rows.decode).tolist())


def test_joules_are_over_tokens_and_absent_without_a_counter(rates: SweepResult, beside: SweepResult) -> None:
    names = list(figure_data.JOULES.values())
    assert figure_data.arm_frame(rates.cells, names)[names].isna().all(axis=None)
    for name, (_, bar) in zip(ARMS, figure_data.arm_frame(beside.cells, names).iterrows(), strict=True):
        joules, prompt, output = 9.0 * (1 + ARMS[name].pause_s), 6 * 2048, 6 * 24
        expected = [joules / prompt, joules / output, joules / (prompt + output)]
        for end in ("", "_low", "_high"):
            assert [bar[f"{each}{end}"] for each in names] == pytest.approx(expected)


def test_the_stream_is_the_one_with_the_longest_pause_under_the_baseline(rates: SweepResult) -> None:
    cells = rates.at({"load.rate_per_s": 1.7})
    data = token_streams(cells, "default")
    by_arm = {cell.arm: raw(cell) for cell in cells}
    pauses = {
        (place, number): max(gaps_of(request))
        for place, repetition in enumerate(by_arm["default"])
        for number, request in enumerate(repetition["requests"])
        if all(rounds[place]["requests"][number]["error"] is None for rounds in by_arm.values())
    }
    place, number = max(pauses, key=pauses.__getitem__)
    assert data.which.startswith(f"request {number} (prompt of 2048 tokens) of repetition {place}:")
    assert f"{pauses[place, number]:.3g} s" in data.which and data.since == SINCE_DUE
    for cell, stream in zip(cells, data.streams, strict=True):
        request = by_arm[cell.arm][place]["requests"][number]
        expected = [time_s - request["due_s"] for time_s, _ in request["arrivals"]]
        assert stream["times_s"] == pytest.approx(expected)
        assert stream["num_tokens"] == [count for _, count in request["arrivals"]]


def test_a_request_that_failed_in_one_arm_is_not_shown(tmp_path: Path) -> None:
    fail = [("layered-4", 0, request) for request in range(4) if request != 2]
    result = write_sweep(tmp_path / "sweep", arms=THREE, rounds=1, num_requests=4, fail=fail)
    assert token_streams(result.cells, "default").which.startswith("request 2 ")
    fail.append(("mixed-512", 0, 2))
    result = write_sweep(tmp_path / "none", arms=THREE, rounds=1, num_requests=4, fail=fail)
    assert token_streams(result.cells, "default") is None


def test_a_background_stream_is_shown_from_the_prompts_sending(beside: SweepResult) -> None:
    cells = beside.at({})
    data = token_streams(cells, "default")
    assert data.since == SINCE_SENT
    pauses = {}
    for place, repetition in enumerate(raw(cells[0])):
        for number, request in enumerate(repetition["requests"]):
            sent_s, first_s = request["sent_s"], request["arrivals"][0][0]
            for stream, trace in enumerate(repetition["background"]):
                times = [time_s for time_s, _ in trace["arrivals"]]
                for earlier, later in pairwise(times):
                    if later > sent_s and earlier < first_s:
                        pauses[place, number, stream, earlier] = later - earlier
    place, number, stream, _ = max(pauses, key=pauses.__getitem__)
    assert data.which.startswith(f"running stream {stream} beside request {number} ")
    assert f"repetition {place}:" in data.which
    prompts = [raw(cell)[place]["requests"][number] for cell in cells]
    longest_s = max(each["arrivals"][0][0] - each["sent_s"] for each in prompts)
    for cell, prompt, shown in zip(cells, prompts, data.streams, strict=True):
        arrivals = raw(cell)[place]["background"][stream]["arrivals"]
        before = [count for time_s, count in arrivals if time_s <= prompt["sent_s"]][-1]
        for time_s, count in zip(shown["times_s"], shown["num_tokens"], strict=True):
            assert [pytest.approx(prompt["sent_s"] + time_s), before + count] in arrivals
        assert shown["mark_s"] == pytest.approx(prompt["arrivals"][0][0] - prompt["sent_s"])
        assert shown["end_s"] == pytest.approx(1.25 * longest_s)
        assert max(shown["times_s"]) <= shown["end_s"] < max(shown["times_s"]) + 1.0


def test_arms_that_are_called_alike_are_told_apart(tmp_path: Path) -> None:
    twins = {"one": ARMS["layered-2"], "two": ARMS["layered-2"]}
    result = write_sweep(tmp_path / "sweep", arms=twins, rounds=1, num_requests=2)
    assert figure_data.titles_of(result.cells) == {"one": "layered G=2 (one)", "two": "layered G=2 (two)"}
    assert figure_data.rate_groups(result) == []
