"""The quickstart's scenario, figures, table, picture and command, without SGLang."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner
from rich.console import Console

from sglang_layered.errors import BenchError, LabError
from sglang_layered_lab.bench.metrics import Window
from sglang_layered_lab.bench.record import BenchRecord, Repetition
from sglang_layered_lab.bench.sweep_result import FORMAT, MANIFEST, SweepResult
from sglang_layered_lab.bench.sweep_spec import read_sweep
from sglang_layered_lab.bench.trace import Arrival, RequestTrace
from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine
from sglang_layered_lab.quickstart import MODES, figures
from sglang_layered_lab.quickstart.figures import measure, values_of
from sglang_layered_lab.quickstart.run import SPEC, scenario

Arrivals = tuple[Arrival, ...]
SENT_S = 100.0  # times of these tests are counted from the sending


def arrivals(*times_s: float) -> Arrivals:
    return tuple(Arrival(time_s, index + 1) for index, time_s in enumerate(times_s))


def trace(name: str, sent_s: float, seen: Arrivals, tokens: int = 2048) -> RequestTrace:
    moved = tuple(Arrival(each.time_s + SENT_S, each.num_tokens) for each in seen)
    return RequestTrace(name, SENT_S + sent_s, SENT_S + sent_s, tokens, 99, moved)


def played(long: Arrivals, *running: Arrivals) -> Repetition:
    streams = tuple(trace(f"s{index}", -9.0, each, 1280) for index, each in enumerate(running))
    usage = dict.fromkeys(("counters", "expert_bytes", "joules", "energy_tokens"))
    return Repetition(0, (trace("long", 0.0, long),), Window(0.0, 2 * SENT_S), {}, {}, usage, streams)


def steady(ttft_s: float, gap_s: float) -> Repetition:
    """Two streams with a token every `gap_s`, from 1 s before to 1 s after the long prompt's first token."""
    count = round((ttft_s + 2.0) / gap_s)
    one = arrivals(*(-1.0 + gap_s * (index + 0.5) for index in range(count)))
    return played(arrivals(ttft_s, ttft_s + gap_s), one, one)


@pytest.fixture
def result_of(tmp_path: Path) -> Callable[..., SweepResult]:
    """A quickstart that never ran, of these modes."""

    def write(*modes: str) -> SweepResult:
        shapes = {"whole": (2.0, 1.9), "mixed": (5.0, 1.0), "layered": (2.5, 0.4)}
        spec = scenario(modes)
        for cell in spec.cells:
            ttft_s, gap_s = shapes[cell.arm.mode]
            rounds = tuple(
                replace(steady(ttft_s + shift, gap_s), index=index)
                for index, shift in enumerate((0.2, 0, 0.1))
            )
            BenchRecord(cell.spec.to_json(), {}, rounds).write(tmp_path / cell.file_name)
        (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT} | spec.to_json()))
        return SweepResult.read(tmp_path)

    return write


def median_of(result: SweepResult, mode: str, metric: str) -> float:
    return median(values_of(next(cell for cell in result.cells if cell.mode == mode), metric))


# Figures


def test_figures_of_a_hand_made_pause() -> None:
    # The first token comes at 2.0; the pause from 0.1 to 2.2 spans it; the next gap begins later.
    seen = measure(played(arrivals(2.0, 2.2), arrivals(-0.3, -0.2, -0.1, 0.1, 2.2, 2.3, 2.4)))
    assert seen["ttft_s"] == pytest.approx(2.0)
    assert seen["worst_gap_s"] == pytest.approx(2.1)
    assert seen["median_gap_s"] == pytest.approx((0.2 + 2.1) / 2)  # -0.1..0.1 and 0.1..2.2
    assert seen["tokens_per_s"] == pytest.approx(2 / 2.2)  # the tokens at 0.1 and 2.2


def test_gap_that_begins_before_sending_counts_whole() -> None:
    assert measure(played(arrivals(1.0), arrivals(-0.5, 1.5, 1.6)))["worst_gap_s"] == pytest.approx(2.0)


def test_gaps_outside_the_window_do_not_count() -> None:
    seen = measure(played(arrivals(1.0), arrivals(-9.0, -0.1, 0.4, 0.9, 1.4, 9.0)))
    assert seen["worst_gap_s"] == pytest.approx(0.5)


def test_worst_gap_is_over_all_streams_and_chunks_of_two_tokens_count_two() -> None:
    double = (Arrival(-0.5, 2), Arrival(0.5, 4), Arrival(1.5, 6))
    seen = measure(played(arrivals(1.0), double, arrivals(-0.1, 0.2, 0.5, 0.8, 1.1)))
    assert seen["worst_gap_s"] == pytest.approx(1.0)
    assert seen["tokens_per_s"] == pytest.approx((4 + 4) / 1.5)


def test_steady_stream_against_its_definition() -> None:
    seen = measure(steady(ttft_s=3.0, gap_s=0.1))
    assert seen["worst_gap_s"] == pytest.approx(0.1)
    assert seen["median_gap_s"] == pytest.approx(0.1)
    assert seen["tokens_per_s"] == pytest.approx(20.0, rel=0.05)


def test_what_gives_no_figure_is_refused() -> None:
    with pytest.raises(LabError, match="no token"):
        measure(played((), arrivals(0.0)))
    for running in [(), ((),), (arrivals(-2.0, -1.0),)]:
        with pytest.raises(LabError, match="before and after"):
            measure(played(arrivals(1.0), *running))


# Scenario


def test_servers_differ_in_mode_flags_only() -> None:
    cells = scenario().cells
    assert tuple(cell.arm.mode for cell in cells) == MODES
    common = {cell.spec.server.flags[: -len(cell.arm.flags)] for cell in cells}
    assert len(common) == 1
    assert len({(cell.spec.load, cell.spec.workload, cell.spec.server.model) for cell in cells}) == 1
    assert "--enable-mixed-chunk" in cells[1].spec.server.flags


@pytest.mark.parametrize("size", ["full", "half"])
def test_the_pool_holds_all_requests(size: str) -> None:
    for cell in scenario(size=size).cells:
        load, flags = cell.spec.load, cell.spec.server.flags
        lengths = cell.spec.workload.lengths
        assert load.background and lengths.prompt and lengths.output
        needed = load.background.num_streams * (load.background.prompt_tokens + load.background.output_tokens)
        needed += (lengths.prompt.tokens or 0) + (lengths.output.tokens or 0)
        assert needed <= int(flags[flags.index("--max-total-tokens") + 1])


def test_the_full_size_is_the_file_as_it_is_and_half_is_half() -> None:
    plain = read_sweep(SPEC).cells[0].spec
    full, half = (scenario(size=size).cells[0].spec for size in ("full", "half"))
    assert (full.load, full.workload) == (plain.load, plain.workload)
    assert half.workload.lengths.prompt and half.workload.lengths.prompt.tokens == 1024
    assert half.load.background and half.load.background.prompt_tokens == 640


def test_scenario_refuses_nothing_to_do() -> None:
    with pytest.raises(BenchError, match="rounds"):
        scenario(repetitions=0)


# Table, last line, picture


def test_table_fits_eighty_columns_and_shows_every_figure(result_of: Callable[..., SweepResult]) -> None:
    result = result_of(*MODES)
    out = StringIO()
    Console(file=out, width=80).print(figures.table(result))
    text = out.getvalue()
    assert "…" not in text and "A 2048-token prompt beside 2 running conversations" in text
    for mode in MODES:
        assert mode in text
        assert f"{median_of(result, mode, 'ttft_s'):.2f}" in text


def test_last_line_has_the_ratios_of_medians(result_of: Callable[..., SweepResult]) -> None:
    result = result_of(*MODES)
    parts = [
        f"{name} layered/{other} "
        f"{median_of(result, 'layered', metric) / median_of(result, other, metric):.2f}"
        for name, metric, other in (
            ("TTFT", "ttft_s", "whole"),
            ("TTFT", "ttft_s", "mixed"),
            ("worst gap", "worst_gap_s", "mixed"),
        )
    ]
    assert figures.last_line(result) == "  ".join(["QUICKSTART OK", *parts])


@pytest.mark.parametrize("modes", [("whole",), ("whole", "mixed"), ("whole", "layered")])
def test_last_line_leaves_out_what_was_not_run(
    modes: tuple[str, ...], result_of: Callable[..., SweepResult]
) -> None:
    line = figures.last_line(result_of(*modes))
    assert line.startswith("QUICKSTART OK") and "layered/mixed" not in line
    assert ("layered/whole" in line) == ("layered" in modes)


@pytest.mark.parametrize("modes", [("whole",), MODES])
def test_picture_is_a_png(
    tmp_path: Path, modes: tuple[str, ...], result_of: Callable[..., SweepResult]
) -> None:
    caption = figures.draw(result_of(*modes), tmp_path / "out" / "tokens.png")
    data = (tmp_path / "out" / "tokens.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n") and len(data) > 10_000
    assert "longest pause" in caption


# Command


def test_command_refuses_unknown_modes_and_explains_itself() -> None:
    from sglang_layered_lab.cli.quickstart import quickstart

    shown = CliRunner().invoke(quickstart, ["--help"])
    assert shown.exit_code == 0 and "--keep" in shown.output
    assert CliRunner().invoke(quickstart, ["--mode", "fast"]).exit_code == 2


def test_machine_and_versions_are_named() -> None:
    assert {"cpu", "cores", "memory_gib", "gpus"} <= set(this_machine())
    assert "python" in installed_versions()
    assert current_commit() is None or len(current_commit() or "") >= 40
