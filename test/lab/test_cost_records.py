"""From records of duels to a fit: a simulated server with a known law, read back from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import pandas as pd
import pytest
from click.testing import CliRunner

from cost_duels import ARMS, BENCH, MODEL, PROMPT_TOKENS, REQUEST_S, Law, Recipe, write_duels
from sglang_layered.cli.main import cli
from sglang_layered.core.pacing import StepLoad
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.bench.trace import Arrival
from sglang_layered_lab.cost.duel import duel_times
from sglang_layered_lab.cost.records import delay_steps_of, flags_of, shape_of, way_of
from sglang_layered_lab.cost.report import fit_sweeps, read_fit, write_fit
from sglang_layered_lab.cost.ways import Way
from sglang_layered_lab.models.catalogue import find_recipe

QUICKSTART = Path(__file__).resolve().parents[2] / "results" / "quickstart" / "2026-11-30-2cores"


@pytest.fixture(scope="module", params=["overlap", "no-overlap"])
def exact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    folder = tmp_path_factory.mktemp("duels") / request.param
    return write_duels(folder, Recipe(overlap=request.param == "overlap"))


def test_the_machine_comes_back_from_the_files(exact: SweepResult) -> None:
    report = fit_sweeps([exact])
    found = report.model
    assert (found.shape, found.is_padded, report.skipped) == (BENCH, True, ())
    for load in (StepLoad(6, 700), StepLoad(4, 400, (300,), (0,), 2.0), StepLoad(0, 0, (900,), (0,), 8.0)):
        assert found.step_s(load) == pytest.approx(MODEL.step_s(load), rel=0.05)
    assert report.waits.request_s == pytest.approx(REQUEST_S, rel=0.05)
    assert report.errors["arm"].worst < 0.01
    assert report.errors["decode_rows"].p90 < 0.05
    assert report.waits.before_steps == pytest.approx(0.5, abs=0.2)
    assert report.waits.delay_steps == (1 if exact.name == "overlap" else 0)
    assert (report.decode_rows, report.prompt_tokens) == ((0, 8), (1024, 1024))


def test_each_configuration_is_told_by_a_fit_without_its_arm(exact: SweepResult) -> None:
    found = pd.DataFrame(fit_sweeps([exact]).configurations)
    rows = {(each.arm, each.decode_rows): each for each in found.itertuples()}
    assert len(rows) == len(ARMS) * 3
    for each in rows.values():
        assert each.predicted_prompt_s == pytest.approx(each.prompt_s, rel=0.01)
        assert each.predicted_worst_s == pytest.approx(each.worst_s, rel=0.01)
    assert rows["mixed-64", 8].prompt_s > 2 * rows["layered-8", 8].prompt_s
    assert rows["whole", 8].worst_s == pytest.approx(rows["whole", 8].prompt_s)


def test_noise_of_five_percent_stays_below_ten(tmp_path: Path) -> None:
    report = fit_sweeps([write_duels(tmp_path / "noisy", Recipe(noise=0.05))])
    assert report.errors["arm"].median < 0.1 and report.errors["arm"].worst < 0.3


def test_a_machine_of_another_kind_has_a_large_held_out_error(tmp_path: Path) -> None:
    class Jumping(Law):
        """Every step takes 10 or 80 ms by whether its rows are a multiple of three, of sixteens."""

        def step_s(self, load: StepLoad) -> float:
            rows = load.decode_rows + load.prompt_rows // 16
            return 0.08 if rows % 3 else 0.01

    recipe = Recipe(model=Jumping())
    assert fit_sweeps([write_duels(tmp_path / "odd", recipe)]).errors["arm"].median > 0.2


def test_steps_that_the_flags_do_not_explain_are_left_out(tmp_path: Path) -> None:
    layered = ("--prefill-mode", "layered", "--layered-num-groups")
    flags = {
        "layered-4": (*layered, "2"),
        "layered-2": (*layered, "8"),
        "mixed-64": ("--enable-mixed-chunk",),
    }
    report = fit_sweeps([write_duels(tmp_path / "wrong", Recipe(flags=flags, decode_rows=(4,)))])
    text = "\n".join(report.skipped)
    assert "layered-4@4.json: the prompt took more than 2 steps" in text
    assert "layered-2@4.json: the prompt took fewer than 8 steps" in text
    assert "mixed-64@4.json: the prompt took more than 1 steps" in text
    assert {each["arm"] for each in report.configurations} == set(ARMS) - set(flags)


def test_sizes_are_those_of_the_recipe() -> None:
    spec = {"server": {"model": {"arch": "qwen3_moe", "preset": "demo"}, "flags": []}}
    demo = find_recipe("qwen3_moe", "demo")
    assert shape_of(BenchRecord(spec, {})) == demo
    spec["server"]["flags"] = ["--dtype", "float32"]
    assert shape_of(BenchRecord(spec, {})) == replace(demo, dtype="float32")
    with pytest.raises(BenchError, match="--model"):
        shape_of(BenchRecord({"server": {"model": "some-folder"}}, {}))


def lumped(record: BenchRecord) -> BenchRecord:
    """Tokens of the streams come two at a time."""
    rounds = tuple(
        replace(
            each,
            background=tuple(
                replace(trace, arrivals=tuple(Arrival(a.time_s, a.num_tokens) for a in trace.arrivals[::2]))
                for trace in each.background
            ),
        )
        for each in record.repetitions
    )
    return BenchRecord(record.spec, record.made_with, rounds)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"load": {"arrivals": "poisson"}}, "no duel"),
        ({"load": {"arrivals": "closed", "num_clients": 2}}, "no duel"),
        ({"server": {"flags": ["--prefill-mode", "layered", "--layered-execution", "auto"]}}, "auto"),
        (None, "lumps"),
    ],
)
def test_cells_that_tell_nothing_are_named(
    tmp_path: Path, spec: Mapping[str, object] | None, reason: str
) -> None:
    result = write_duels(tmp_path / "cells", Recipe(arms=("layered-4", "whole"), decode_rows=(4,)))
    path = tmp_path / "cells" / "layered-4@4.json"
    record = BenchRecord.read(path)
    model = record.spec["server"]["model"]
    changed = lumped(record) if spec is None else replace(record, spec={**record.spec, **spec})
    changed.spec["server"].setdefault("model", model)
    changed.write(path)
    with pytest.raises(BenchError, match="do not tell"):  # what is left are two observations
        fit_sweeps([SweepResult.read(path.parent)])
    both = [SweepResult.read(path.parent), write_duels(tmp_path / "good", Recipe())]
    [line] = fit_sweeps(both).skipped
    assert line.startswith("layered-4@4.json") and reason in line
    assert result.cells


def test_sweeps_of_two_models_are_refused(exact: SweepResult, tmp_path: Path) -> None:
    other = write_duels(tmp_path / "other", Recipe(arms=("whole",), decode_rows=(0,)))
    path = other.cells[0].record_path
    record = BenchRecord.read(path)
    record.spec["server"]["model"]["preset"] = "tiny"
    record.write(path)
    with pytest.raises(BenchError, match="several models"):
        fit_sweeps([exact, SweepResult.read(path.parent)])


@pytest.mark.parametrize(
    ("flags", "way"),
    [
        ((), Way("whole")),
        (("--chunked-prefill-size", "256"), Way("chunked", 256)),
        (("--chunked-prefill-size=-1",), Way("whole")),
        (("--enable-mixed-chunk", "--chunked-prefill-size=128"), Way("mixed", 128)),
        (("--prefill-mode=layered",), Way("layered", 2, max_tokens=4096)),
        (("--prefill-mode=layered", "--layered-group-tokens", "16"), Way("layered", 8, max_tokens=4096)),
        (
            ("--prefill-mode", "layered", "--layered-num-groups", "3", "--layered-execution", "sequential"),
            Way("layered", 3, True, 4096),
        ),
        (
            ("--prefill-mode", "layered", "--chunked-prefill-size", "512", "--layered-group-tokens", "128"),
            Way("layered", 4, max_tokens=512),
        ),
    ],
)
def test_flags_tell_the_way(flags: tuple[str, ...], way: Way) -> None:
    record = BenchRecord({"server": {"flags": ["--dtype", "bfloat16", *flags]}}, {"machine": {"gpus": []}})
    assert flags_of(record)["dtype"] == "bfloat16"
    assert way_of(record, PROMPT_TOKENS, BENCH.num_layers) == way


def test_a_fit_is_written_read_and_used(exact: SweepResult, tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    report = fit_sweeps([exact])
    write_fit(report, path)
    assert read_fit(path) == report
    assert json.loads(path.read_text())["errors"]["arm"]["worst"] < 0.01
    options = ["--prompt-tokens", "1024", "--chunk", "256", "--groups", "4", "--context-tokens", "400"]
    result = CliRunner().invoke(
        cli,
        [
            "cost",
            "predict",
            "--device",
            f"fitted:{path}",
            "--decode-rows",
            "4",
            "--decode-rows",
            "32",
            *options,
        ],
    )
    assert result.exit_code == 0, result.output
    assert "predicted, not measured" in result.output and "outside of what the fit has seen" in result.output
    assert "layered 4 *" in result.output
    fitted = ["cost", "predict", "--device", f"fitted:{path}"]
    assert CliRunner().invoke(cli, [*fitted, "--scale", "h200:2xh100"]).exit_code == 0
    refused = CliRunner().invoke(cli, [*fitted, "--model", "gpt-oss-20b"])
    assert "--model" in str(refused.exception)


def test_the_command_fits_and_says_what_it_skipped(exact: SweepResult, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    folder = str(exact.cells[0].record_path.parent)
    result = CliRunner().invoke(cli, ["cost", "fit", folder, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "held out: arm by arm" in result.output and "a decode row" in result.output
    assert read_fit(out).model.shape == BENCH
    paper = CliRunner().invoke(cli, ["cost", "paper"])
    assert paper.exit_code == 0 and "predicted: roofline" in paper.output


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "h100"],
        ["--scale", "h200:2xh100"],
        ["--device", "fitted:/nowhere.json"],
        ["--model", "unknown"],
    ],
)
def test_bad_options_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(cli, ["cost", "predict", *options])
    assert result.exit_code == 1 and isinstance(result.exception, (BenchError, ValueError))


def test_a_file_that_is_no_fit_is_refused(tmp_path: Path) -> None:
    for text in ("{}", '{"format": 9}', "no json"):
        (tmp_path / "fit.json").write_text(text)
        with pytest.raises(BenchError, match="fit"):
            read_fit(tmp_path / "fit.json")


@pytest.mark.parametrize(("mode", "num_steps"), [("mixed", 9), ("layered", 12)])
def test_steps_of_real_streams_add_up_to_the_time_to_first_token(mode: str, num_steps: int) -> None:
    """A recorded quickstart: its wait, its steps and the delay of overlap on a CPU are its TTFT."""
    [record] = [cell.record for cell in SweepResult.read(QUICKSTART).cells if cell.mode == mode]
    delay = delay_steps_of(record)
    for repetition in record.repetitions:
        seen = duel_times([repetition], num_steps, delay)
        assert seen.wait_s is not None and seen.decode_s is not None
        assert seen.ttft_s == pytest.approx(seen.wait_s + sum(seen.steps_s) + delay * seen.decode_s, rel=0.02)
        assert median(seen.steps_s) > 2 * seen.decode_s  # the last chunk of 2048 tokens has few
        for wrong in (num_steps - 1, num_steps + 1):
            with pytest.raises(BenchError, match="the prompt took"):
                duel_times([repetition], wrong, delay)
