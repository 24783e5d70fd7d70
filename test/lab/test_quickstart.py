"""The quickstart's metrics, record, report, picture and command, without SGLang."""

import json
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from sglang_layered.errors import QuickstartError
from sglang_layered_lab.bench.trace import Arrival
from sglang_layered_lab.quickstart import plot, report
from sglang_layered_lab.quickstart.metrics import (
    Metrics,
    Repetition,
    Stream,
    measure,
    summarise,
    typical,
)
from sglang_layered_lab.quickstart.record import (
    ModeRun,
    Record,
    current_commit,
    installed_versions,
    this_machine,
)
from sglang_layered_lab.quickstart.scenario import MODE_FLAGS, Scenario


def stream(*times_s: float) -> Stream:
    return tuple(Arrival(time_s, index + 1) for index, time_s in enumerate(times_s))


def steady(ttft_s: float, gap_s: float) -> Repetition:
    """Two streams with a token every `gap_s`, from 1 s before to 1 s after the long prompt's first token."""
    count = round((ttft_s + 2.0) / gap_s)
    one = stream(*(-1.0 + gap_s * (index + 0.5) for index in range(count)))
    return Repetition(stream(ttft_s, ttft_s + gap_s), (one, one))


def make_record() -> Record:
    shapes = {"whole": (2.0, 1.9), "mixed": (5.0, 1.0), "layered": (2.5, 0.4)}
    runs = tuple(
        ModeRun(
            mode,
            ("serve", mode),
            12.5,
            3 * 2**30,
            tuple(steady(ttft_s + shift, gap_s) for shift in (0, 0.1, 0.2)),
        )
        for mode, (ttft_s, gap_s) in shapes.items()
    )
    return Record(Scenario(), "model", installed_versions(), current_commit(), this_machine(), runs)


# Metrics


def test_metrics_of_a_hand_made_pause() -> None:
    # The first token comes at 2.0; the pause from 0.1 to 2.2 spans it; the next gap begins later.
    pausing = stream(-0.3, -0.2, -0.1, 0.1, 2.2, 2.3, 2.4)
    figures = measure(Repetition(stream(2.0, 2.2), (pausing,)))
    assert figures.ttft_s == 2.0
    assert figures.worst_gap_s == pytest.approx(2.1)
    assert figures.median_gap_s == pytest.approx((0.2 + 2.1) / 2)  # -0.1..0.1 and 0.1..2.2
    assert figures.tokens_per_s == pytest.approx(2 / 2.2)  # the tokens at 0.1 and 2.2


def test_gap_that_begins_before_sending_counts_whole() -> None:
    assert measure(Repetition(stream(1.0), (stream(-0.5, 1.5, 1.6),))).worst_gap_s == pytest.approx(2.0)


def test_gaps_outside_the_window_do_not_count() -> None:
    figures = measure(Repetition(stream(1.0), (stream(-9.0, -0.1, 0.4, 0.9, 1.4, 9.0),)))
    assert figures.worst_gap_s == pytest.approx(0.5)


def test_worst_gap_is_over_all_streams_and_chunks_of_two_tokens_count_two() -> None:
    double = (Arrival(-0.5, 2), Arrival(0.5, 4), Arrival(1.5, 6))
    figures = measure(Repetition(stream(1.0), (double, stream(-0.1, 0.2, 0.5, 0.8, 1.1))))
    assert figures.worst_gap_s == pytest.approx(1.0)
    assert figures.tokens_per_s == pytest.approx((4 + 4) / 1.5)


def test_steady_stream_against_its_definition() -> None:
    figures = measure(steady(ttft_s=3.0, gap_s=0.1))
    assert figures.worst_gap_s == pytest.approx(0.1)
    assert figures.median_gap_s == pytest.approx(0.1)
    assert figures.tokens_per_s == pytest.approx(20.0, rel=0.05)


def test_empty_streams_are_refused() -> None:
    for long, running in [((), (stream(0.0),)), (stream(1.0), ()), (stream(1.0), ((),))]:
        with pytest.raises(QuickstartError):
            Repetition(long, running)
    with pytest.raises(QuickstartError, match="before and after"):
        measure(Repetition(stream(1.0), (stream(-2.0, -1.0),)))


def test_spread_and_typical_repetition() -> None:
    repetitions = [steady(ttft_s, 0.1) for ttft_s in (3.0, 1.0, 2.0)]
    spread = summarise(repetitions)["ttft_s"]
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)
    assert set(summarise(repetitions)) == set(Metrics.__slots__)
    assert typical(repetitions).ttft_s == 2.0
    assert typical(repetitions[:2]).ttft_s == 1.0


# Scenario


def test_prompts_have_exact_lengths_and_differ_by_repetition_but_not_by_call() -> None:
    spec = Scenario()
    longs = [spec.long_prompt(repetition, 4096) for repetition in (-1, 0, 1, 2)]
    assert [len(prompt) for prompt in longs] == [2048] * 4
    assert len({tuple(prompt[:4]) for prompt in longs}) == 4
    assert spec.long_prompt(1, 4096) == Scenario().long_prompt(1, 4096)
    running = spec.running_prompts(0, 4096)
    assert [len(prompt) for prompt in running] == [1280] * 4
    assert len({tuple(prompt[:4]) for prompt in running}) == 4
    assert all(0 < token < 4096 for prompt in [*longs, *running] for token in prompt)


def test_servers_differ_in_mode_flags_only() -> None:
    spec = Scenario()
    common = {tuple(spec.server_flags(mode)[: -len(flags)]) for mode, flags in MODE_FLAGS.items()}
    assert len(common) == 1
    assert "--enable-mixed-chunk" in spec.server_flags("mixed")
    with pytest.raises(QuickstartError, match="no mode"):
        spec.server_flags("fast")


@pytest.mark.parametrize("field", ["repetitions", "num_running", "long_prompt_tokens"])
def test_scenario_refuses_nothing_to_do(field: str) -> None:
    with pytest.raises(QuickstartError, match=field):
        Scenario(**{field: 0})


def test_scenario_refuses_a_pool_too_small() -> None:
    with pytest.raises(QuickstartError, match="too small"):
        Scenario(max_total_tokens=4000)


# Record, report, picture


def test_record_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    record = make_record()
    record.write(path)
    again = Record.read(path)
    assert again.scenario == record.scenario
    assert again.versions == dict(record.versions) and again.machine == record.machine
    for before, after in zip(record.runs, again.runs, strict=True):
        assert (after.mode, after.command) == (before.mode, before.command)
        assert after.peak_memory_bytes == before.peak_memory_bytes
        for name, spread in before.summary().items():
            assert after.summary()[name].median == pytest.approx(spread.median, abs=1e-5)
    written = json.loads(path.read_text())
    assert written["runs"][0]["metrics"]["ttft_s"]["median"] == pytest.approx(2.1)
    again.write(path)
    assert json.loads(path.read_text())["runs"][0]["repetitions"] == written["runs"][0]["repetitions"]


def test_table_fits_eighty_columns_and_shows_every_figure() -> None:
    record = make_record()
    out = StringIO()
    Console(file=out, width=80).print(report.table(record))
    text = out.getvalue()
    assert "…" not in text
    for run in record.runs:
        assert run.mode in text
        assert f"{run.summary()['ttft_s'].median:.2f}" in text
    assert len(report.legend(record)) == 3


def test_last_line_has_the_ratios_of_medians() -> None:
    record = make_record()
    by_mode = {run.mode: run.summary() for run in record.runs}
    expected = [
        by_mode["layered"]["ttft_s"].median / by_mode["whole"]["ttft_s"].median,
        by_mode["layered"]["ttft_s"].median / by_mode["mixed"]["ttft_s"].median,
        by_mode["layered"]["worst_gap_s"].median / by_mode["mixed"]["worst_gap_s"].median,
    ]
    words = ("TTFT layered/whole", "TTFT layered/mixed", "worst gap layered/mixed")
    parts = [f"{word} {ratio:.2f}" for word, ratio in zip(words, expected, strict=True)]
    assert report.last_line(record) == "  ".join(["QUICKSTART OK", *parts])


def test_last_line_leaves_out_what_was_not_run() -> None:
    full = make_record()

    def only(*modes: str) -> str:
        runs = tuple(run for run in full.runs if run.mode in modes)
        return report.last_line(Record(Scenario(), "model", {}, None, {}, runs))

    assert only("whole") == "QUICKSTART OK"
    assert only("whole", "mixed") == "QUICKSTART OK"
    assert only("whole", "layered").startswith("QUICKSTART OK  TTFT layered/whole ")
    assert "mixed" not in only("whole", "layered")


@pytest.mark.parametrize("num_modes", [1, 3])
def test_picture_is_a_png(tmp_path: Path, num_modes: int) -> None:
    full = make_record()
    record = Record(full.scenario, "model", {}, None, {}, full.runs[:num_modes])
    plot.draw(record, tmp_path / "out" / "tokens.png")
    data = (tmp_path / "out" / "tokens.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n") and len(data) > 10_000


def test_staircase_counts_tokens_of_all_streams_until_the_first_of_them_ends() -> None:
    repetition = Repetition(stream(1.0), (stream(-2.0, -1.0, 0.5), stream(-1.5, 0.25, 3.0)))
    times_s, totals = plot.staircase(repetition, start_s=-1.2, end_s=2.0)
    assert times_s == [-1.2, -1.0, 0.25, 0.5, 0.5]
    assert totals == [0, 1, 2, 3, 3]


# Command


def test_command_refuses_unknown_modes_and_explains_itself() -> None:
    from sglang_layered_lab.cli.quickstart import quickstart

    shown = CliRunner().invoke(quickstart, ["--help"])
    assert shown.exit_code == 0 and "--keep" in shown.output
    assert CliRunner().invoke(quickstart, ["--mode", "fast"]).exit_code == 2


def test_machine_and_versions_are_named() -> None:
    assert {"cpu", "cores", "memory_gib", "gpus"} <= set(this_machine())
    assert "python" in installed_versions()
