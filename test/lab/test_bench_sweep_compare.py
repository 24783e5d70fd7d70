"""Arms of a sweep against a baseline: by rounds that both have, losers lose, tables say what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest
from scipy import stats

from bench_sweeps import ARMS, Made, write_sweep
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench import tables
from sglang_layered_lab.bench.compare import Point
from sglang_layered_lab.bench.ratios import versus
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.sweep_compare import (
    baseline_of,
    check_baseline,
    point_duels,
    point_values,
)
from sglang_layered_lab.bench.sweep_result import SweepResult

SLOW = Made("layered", "slow", 2.4, 0.65, {"hybrid": 9.0})
FOUR: Mapping[str, Made] = {
    **{name: ARMS[name] for name in ("default", "mixed-512", "layered-8")},
    "layered-slow": SLOW,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return write_sweep(tmp_path_factory.mktemp("sweep") / "sweep", arms=FOUR, num_requests=6)


def test_values_are_means_and_ratios_are_paired_by_rounds(result: SweepResult) -> None:
    found = point_values(result, {}, "default", ("ttft_mean", "joules_total"))
    assert list(found) == ["ttft_mean"]
    base = result.of_arm("default")[0].known("ttft_mean")
    for cell, value in zip(result.cells, found["ttft_mean"], strict=True):
        values = cell.known("ttft_mean")
        assert (value.arm, value.num_rounds) == (cell.arm, 3)
        assert value.mean == pytest.approx(mean(values))
        assert value.interval.low <= value.mean <= value.interval.high
        if cell.arm == "default":
            assert value.versus is None
            continue
        ratios = [one / other for one, other in zip(values, base, strict=True)]
        middle = prod(ratios) ** (1 / 3)
        spread = [ratio / middle for ratio in ratios]
        assert value.versus.ratio.value == pytest.approx(middle)
        assert value.versus.num_pairs == 3 and value.versus.num_dropped == 0
        reach = stats.t.ppf(0.975, 2) * stdev([ratio - 1 for ratio in spread]) / 3**0.5
        assert value.versus.ratio.interval.high == pytest.approx(middle * (1 + reach), rel=0.02)


def test_a_losing_arm_loses_and_a_winning_one_wins(result: SweepResult) -> None:
    found = point_values(result, {}, "default")
    verdicts = {
        name: {value.arm: value.versus.verdict for value in values if value.versus is not None}
        for name, values in found.items()
    }
    assert verdicts["ttft_mean"] == {"mixed-512": "worse", "layered-8": "worse", "layered-slow": "worse"}
    assert verdicts["tbt_worst"] == {"mixed-512": "better", "layered-8": "better", "layered-slow": "better"}
    assert verdicts["expert_bytes"]["layered-slow"] == "worse"
    assert all(value.versus is None for value in found["coverage_decode"])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({0: 1.0, 1: None, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 3.0, 3: 1.0}, (2, 2, False)),
        ({0: 1.0}, {0: 2.0}, (1, 0, False)),
        ({0: 3.0}, {0: 2.0, 1: 5.0}, (1, 1, True)),
        ({0: None}, {0: 2.0}, (0, 1, False)),
        ({0: 0.0, 1: 0.5}, {0: 0.4, 1: 0.2}, (2, 0, False)),
    ],
)
def test_rounds_that_one_arm_lacks_are_dropped(ours: dict, theirs: dict, expected: tuple) -> None:
    found = versus(pd.Series(ours, dtype=float), pd.Series(theirs, dtype=float), "lower")
    assert (found.num_pairs, found.num_dropped, found.is_behind) == expected
    assert (found.verdict is not None) == (expected[0] > 1 and all(value != 0 for value in ours.values()))
    shown = tables.versus_text(found)
    assert ("dropped" in shown) == (expected[1] > 0)
    if expected[0] == 1:
        assert "one round: no interval" in shown and found.ratio.value == ours[0] / theirs[0]


def test_zero_is_behind_where_more_is_better() -> None:
    found = versus(pd.Series([0.0, 0.0]), pd.Series([0.9, 0.8]), "higher")
    assert found.ratio is None and found.is_behind
    assert tables.versus_text(found) == "no ratio: a value is 0; behind"


def test_shares_have_wilsons_interval(result: SweepResult) -> None:
    [met] = [
        value for value in point_values(result, {}, "default")["attainment_ttft"] if value.arm == "layered-8"
    ]
    assert met.mean == 1.0 and met.interval.method == "Wilson"
    assert met.interval.num_samples == 18 and met.interval.low == pytest.approx(18 / (18 + 3.8415), abs=1e-4)


def test_duels_pick_the_best_layered_arm_and_show_the_lost_ones(result: SweepResult) -> None:
    found = {duel.baseline.arm: duel for duel in point_duels(result, {})}
    places = {
        cell.arm: Point(cell.arm, cell.mean("ttft_mean"), cell.mean("tbt_worst")) for cell in result.cells
    }
    assert set(found) == {"default", "mixed-512"}
    for arm, duel in found.items():
        allowed = [
            places[name] for name in ("layered-8", "layered-slow") if places[name].tbt_s <= places[arm].tbt_s
        ]
        best = min(allowed, key=lambda place: place.ttft_s)
        assert (duel.baseline, duel.rival) == (places[arm], best)
        assert duel.is_lost == (best.ttft_s > places[arm].ttft_s)
    assert found["default"].is_lost and not found["mixed-512"].is_lost
    table = tables.duel_table(result, {})
    assert [row[7].text for row in table.rows] == ["loses", "wins"]
    assert [row[-2].text for row in table.rows] == ["75 / - / 75", "- / 75 / 75"]


def test_a_duel_without_a_rival_is_lost(tmp_path: Path) -> None:
    arms = {"fine": Made("mixed", "fine", 1.0, 0.05), "layered-2": ARMS["layered-2"]}
    result = write_sweep(tmp_path / "sweep", arms=arms, rounds=1, num_requests=3)
    [duel] = point_duels(result, {})
    assert duel.rival is None and duel.is_lost
    [row] = tables.duel_table(result, {}).rows
    texts = [cell.text for cell in row[3:]]
    assert texts == ["none", "-", "-", "-", "loses: no rival has such a TBT", "not measured", "-"]


def test_no_duels_without_rivals(tmp_path: Path) -> None:
    result = write_sweep(tmp_path / "sweep", arms={"a": ARMS["default"]}, rounds=1, num_requests=2)
    assert point_duels(result, {}) == []
    assert tables.duel_table(result, {}).notes[0].startswith("No duels")


def test_the_baseline_is_the_first_arm_or_the_one_asked_for(result: SweepResult) -> None:
    assert baseline_of(result) == "default"
    assert baseline_of(result, "mixed-512") == "mixed-512"
    check_baseline([result], None)
    with pytest.raises(BenchError, match=r"--baseline none: .* one of default, mixed-512, layered-8"):
        check_baseline([result], "none")


def test_a_point_without_the_baseline_has_no_ratios(tmp_path: Path) -> None:
    result = write_sweep(tmp_path / "sweep", arms=FOUR, rounds=2, num_requests=3)
    result = replace(result, cells=result.cells[1:])
    assert all(value.versus is None for value in point_values(result, {}, "default")["ttft_mean"])


def test_an_arm_that_is_a_round_behind_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    result = write_sweep(folder, arms=FOUR, num_requests=3)
    path = result.of_arm("mixed-512")[0].record_path
    record = BenchRecord.read(path)
    replace(record, repetitions=record.repetitions[:2]).write(path)
    result = SweepResult.read(folder)
    values = point_values(result, {}, "default", ("ttft_mean",))["ttft_mean"]
    texts = [tables.versus_text(each.versus) for each in values]
    assert "1 round(s) dropped" in texts[1] and "dropped" not in texts[2]
    assert "Arms have 2 to 3 rounds." in tables.scalar_table(result, {}, "default").notes
    one = write_sweep(tmp_path / "one", arms=FOUR, rounds=1, num_requests=3)
    assert "One round: no interval." in tables.scalar_table(one, {}, "default").notes


def test_tables_have_coverage_failures_and_units(result: SweepResult) -> None:
    names = ("ttft_mean", "tbt_worst", "attainment_ttft", "joules_total")
    table = tables.scalar_table(result, {}, "default", names)
    assert table.header == (
        "arm",
        "TTFT, mean, s",
        "TBT, worst gap of all, ms",
        "requests within the TTFT limit, %",
        "failed of due",
        "expert coverage %: prompt / hybrid / decode",
    )
    ends = [[cell.text for cell in row[-2:]] for row in table.rows]
    assert ends[:2] == [["0 of 18", "75 / - / 75"], ["0 of 18", "- / 75 / 75"]]
    assert table.rows[0][0].text == "default 8192"
    assert "Not measured here: energy a token." in table.notes
    worst = result.cells[0].mean("tbt_worst")
    assert table.rows[0][2].text.startswith(f"{1e3 * worst:.0f} [")
    assert table.rows[0][1].detail == "" and "worse" in table.rows[1][1].detail
    assert [row[1].kind for row in table.rows][:2] == ["", "loses"]


def test_markdown_has_a_line_a_row_and_no_broken_cells() -> None:
    text = tables.to_markdown(("a|b", "c"), [("1", "x\ny"), ("2", "<z>")])
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| 1 | x y |", "| 2 | <z> |"]
    table = tables.Table("", ("a",), ((tables.Cell("1", "detail"),),), ("Note.",))
    assert table.markdown() == "| a |\n| --- |\n| 1 |\n\nNote."


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("s", [0.5, 0.0123], ["500 ms", "12.3 ms"]),
        ("s", [2.5, 0.5], ["2.5 s", "0.5 s"]),
        ("bytes", [3.4e9, 5e7], ["3.4 GB", "0.05 GB"]),
        ("bytes", [5e7], ["50 MB"]),
        ("share", [1.0], ["100 %"]),
        ("1/s", [1234.5], ["1234 1/s"]),
        ("J", [0.06], ["60 mJ"]),
    ],
)
def test_numbers_read_well_in_one_unit_a_column(unit: str, values: list, shown: list) -> None:
    scale = tables.Scale.of(unit, values)
    assert [f"{scale.number(value)} {scale.unit}" for value in values] == shown


def test_points_are_named_by_their_keys() -> None:
    assert tables.point_text({}) == "all"
    assert (
        tables.point_text({"load.rate_per_s": 1.5, "server.x": {"a": 1}}) == 'rate_per_s = 1.5, x = {"a": 1}'
    )
