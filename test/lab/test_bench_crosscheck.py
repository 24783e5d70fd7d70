"""Other tools get our load, and are asked in turns; verdicts keep the limit."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_checks import crosscheck, crosscheck_tools, other_load
from bench_checks.crosscheck_compare import Agreement, agreements, table
from bench_checks.crosscheck_load import LOADS, MODES, SEED, LoadKind, open_times_s
from bench_checks.crosscheck_reading import (
    Reading,
)
from bench_checks.crosscheck_tools import TOOLS, Call, Tool
from bench_checks.crosscheck_words import make_word_tokenizer, word_of
from click.testing import CliRunner
from rich.console import Console

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.intervals import Interval
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.workload import Server

PLANNED = [PlannedRequest(f"r{index}", 0.5 * index, f"word{index} and more", 2 + index) for index in range(9)]


def call(folder: Path, num_clients: int | None = 3, timeout_s: float = 60.0) -> Call:
    return Call(PLANNED, num_clients, 1.75, "http://127.0.0.1:1", folder / "tokenizer", folder, timeout_s)


def reading(tokens_per_s: float = 100.0, ttft_ms: float = 50.0, itl_ms: float = 10.0) -> Reading:
    return Reading(tokens_per_s, ttft_ms, itl_ms, 2, 30, 6)


def test_another_load_than_asked_for_is_refused() -> None:
    reading().check(2, 30, 6, "x")
    for asked in ((3, 30, 6), (2, 31, 6), (2, 30, 5)):
        with pytest.raises(BenchError, match=r"x: of .* came"):
            reading().check(*asked, "x")


def test_bench_serving_gets_the_planned_order_after_its_shuffle(tmp_path: Path) -> None:
    """As its data set `custom` does: shuffle by the seed, then ask for as many tokens as the answer has."""
    rows = crosscheck_tools.bench_serving_rows(call(tmp_path))
    pairs = [tuple(turn["value"] for turn in row["conversations"]) for row in rows]
    random.Random(SEED).shuffle(pairs)
    assert [prompt for prompt, _ in pairs] == [request.prompt for request in PLANNED]
    assert [len(answer.split()) for _, answer in pairs] == list(range(2, 11))


def test_guidellm_gets_the_planned_requests(tmp_path: Path) -> None:
    rows = crosscheck_tools.guidellm_rows(call(tmp_path))
    assert rows[1] == {"prompt": "word1 and more", "output_tokens_count": 3, "relative_timestamp": 1.5}
    assert len(rows) == len(PLANNED)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_commands_name_server_and_files(tool: Tool, tmp_path: Path) -> None:
    asked = call(tmp_path)
    words = " ".join(tool.command(asked))
    for part in (asked.url, str(asked.data), str(asked.output), str(asked.tokenizer), "9"):
        assert part in words


@pytest.mark.parametrize(
    ("tool", "closed", "open_"),
    [
        (TOOLS[0], ["--max-concurrency", "3"], ["--request-rate", "1.75"]),
        (TOOLS[1], ["--profile", "kind=concurrent,streams=3"], ["--profile", "kind=replay"]),
    ],
)
def test_commands_ask_for_the_load(tool: Tool, closed: list[str], open_: list[str], tmp_path: Path) -> None:
    for num_clients, asked, other in ((3, closed, open_), (None, open_, closed)):
        command = tool.command(call(tmp_path, num_clients))
        assert command[command.index(asked[0]) + 1] == asked[1]
        assert other[1] not in command


@pytest.mark.parametrize(("num_clients", "workers"), [(3, "1"), (None, "2")])
def test_guidellm_has_as_many_processes_as_it_needs(
    num_clients: int | None, workers: str, tmp_path: Path
) -> None:
    environment = crosscheck_tools.environment_of(call(tmp_path, num_clients))
    assert environment["GUIDELLM__MAX_WORKER_PROCESSES"] == workers


def test_open_times_are_those_that_bench_serving_draws_one_by_one() -> None:
    """As its `get_request` does after seeding numpy: a request, then an interval."""
    np.random.seed(SEED)
    times_s = [0.0]
    for _ in range(20):
        times_s.append(times_s[-1] + np.random.exponential(1.0 / 2.5))
    assert open_times_s(21, 2.5) == pytest.approx(times_s, rel=1e-12)


def test_the_open_load_is_planned_at_these_times(tmp_path: Path) -> None:
    asked = crosscheck.Asked("tiny", 2, 8, 4, 2.5)
    asked.write_arrivals(tmp_path)
    words = make_word_tokenizer(1024, tmp_path / "tokenizer")
    load = Load.of(asked.spec("stock", "open", tmp_path))
    planned = load.planned(1, Server("http://127.0.0.1:1", 1024, words))
    assert [request.due_s for request in planned] == pytest.approx(open_times_s(8, 2.5), abs=1e-12)
    assert {len(str(request.prompt).split()) for request in planned} == {128}


def script_tool(program: str) -> Tool:
    def read(text: str, _: Call) -> Reading:
        return reading(tokens_per_s=float(text))

    return Tool("script", "all gaps", lambda _: [{"a": 1}], lambda _: [sys.executable, "-c", program], read)


def test_a_tool_runs_offline_in_its_folder_and_its_output_is_read(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; assert pathlib.Path('requests.jsonl').read_text() == '{\"a\": 1}\\n';"
        "pathlib.Path('output.json').write_text(os.environ['HF_HUB_OFFLINE'])"
    )
    (tmp_path / "output.json").write_text("77")  # of an earlier run
    assert script_tool(program).run(call(tmp_path)).output_tokens_per_s == 1.0


@pytest.mark.parametrize(
    ("program", "what"),
    [("print('about me'); raise SystemExit(3)", "status 3(.|\n)*about me"), ("pass", "status 0")],
)
def test_a_tool_that_fails_or_writes_nothing_is_an_error(program: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "output.json").write_text("77")
    with pytest.raises(BenchError, match=what):
        script_tool(program).run(call(tmp_path))


def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    start_s = time.monotonic()
    with pytest.raises(BenchError, match="took too long"):
        script_tool("import time; time.sleep(60)").run(call(tmp_path, timeout_s=1.0))
    assert time.monotonic() - start_s < 30


def agreement(value: float, low: float, high: float) -> Agreement:
    return Agreement(
        "t", "itl_ms", 10.0, 10.0, Interval(value, low, high, 0.95, "Student t of logs", 3), 0.05
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "is_sure"),
    [
        (1.0, 0.96, 1.04, "agrees", True),
        (1.05, 1.05, 1.05, "agrees", True),
        (1.0, 0.94, 1.04, "agrees", False),
        (1.0, 0.96, 1.06, "agrees", False),
        (1.06, 1.04, 1.08, "differs", False),
        (1.08, 1.06, 1.1, "differs", True),
        (0.9, 0.88, 0.96, "differs", False),
        (0.9, 0.88, 0.94, "differs", True),
    ],
)
def test_verdicts(value: float, low: float, high: float, verdict: str, is_sure: bool) -> None:
    found = agreement(value, low, high)
    assert (found.verdict, found.is_sure) == (verdict, is_sure)
    assert (found.to_json()["verdict"], found.to_json()["is_sure"]) == (verdict, is_sure)


def test_ratios_are_theirs_over_ours_within_a_round() -> None:
    """The machine is twice as slow in the second round; the tool's ITL is 10 % above ours in both."""
    ours = [reading(itl_ms=10.0), reading(itl_ms=20.0), reading(itl_ms=10.0)]
    theirs = [reading(itl_ms=11.0), reading(itl_ms=22.0), reading(itl_ms=11.0)]
    speed, ttft, itl = agreements("t", ours, theirs)
    assert (itl.ours, itl.theirs) == (10.0, 11.0)
    assert itl.ratio.value == pytest.approx(1.1) and itl.ratio.high == pytest.approx(1.1)
    assert (itl.verdict, itl.is_sure) == ("differs", True)
    assert {speed.verdict, ttft.verdict} == {"agrees"}


def test_the_table_has_every_figure() -> None:
    console = Console(width=140)
    with console.capture() as seen:
        console.print(table([agreement(1.123, 1.0, 1.26)], "title"))
    for part in ("title", "ITL, median, ms", "10.00", "1.123", "1.000 to 1.260", "differs, not sure", "5 %"):
        assert part in seen.get()


def test_everyone_is_at_every_place_in_turn() -> None:
    orders = [crosscheck.order_of(index, ["a", "b", "c"]) for index in range(3)]
    assert orders[0] == ("a", "b", "c")
    assert [{order[place] for order in orders} for place in range(3)] == [{"a", "b", "c"}] * 3


def test_load_of_others_is_what_is_neither_ours_nor_of_what_we_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In 2 s the machine does 3 s of work; 0.5 s are ours, 0.75 s a child's, 0.25 s an ended child's."""
    now_s = 0.0

    def process(cores: float, ended_cores: float, *started: Any) -> Any:
        def cpu_times() -> SimpleNamespace:
            ended_s = ended_cores * now_s / 2
            return SimpleNamespace(
                user=cores * now_s, system=0.0, children_user=ended_s, children_system=ended_s
            )

        return SimpleNamespace(cpu_times=cpu_times, children=lambda recursive: list(started))

    def machine() -> SimpleNamespace:
        part_s = 1.5 * now_s / 6
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        return SimpleNamespace(**{name: part_s for name in names}, idle=100.0 + now_s)

    monkeypatch.setattr(other_load.psutil, "cpu_times", machine)
    monkeypatch.setattr(other_load.psutil, "Process", lambda: process(0.25, 0.125, process(0.375, 0.0)))
    monkeypatch.setattr(other_load.time, "monotonic", lambda: now_s)
    load = other_load.OtherLoad()
    now_s = 2.0
    assert load.cores() == pytest.approx((3.0 - 0.5 - 0.75 - 0.25) / 2)


def test_each_token_is_a_word_and_text_turns_back_into_the_same_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert len({word_of(token) for token in range(3000)}) == 3000
    make_word_tokenizer(1024, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = random.Random(0).choices(range(1024), k=500)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert text == " ".join(word_of(token) for token in tokens)
    assert tokenizer.encode(text) == tokens
    assert {len(tokenizer.decode([token], skip_special_tokens=True)) for token in range(1024)} == {4}


@pytest.mark.parametrize(("ratio", "status"), [(1.04, 0), (1.06, 1)])
def test_the_command_fails_where_something_differs(
    ratio: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_mode(
        asked: crosscheck.Asked, mode: str, kinds: list[LoadKind], _: Console
    ) -> tuple[dict[str, Any], list[Agreement]]:
        found = agreement(ratio if mode == "layered" else 1.0, 1.0, 1.1)
        return {kind: asked.rounds for kind in kinds}, [found]

    monkeypatch.setattr(crosscheck, "run_mode", run_mode)
    record = tmp_path / "deep" / "record.json"
    done = CliRunner().invoke(crosscheck.main, ["--rounds", "3", "--record", str(record)])
    assert done.exit_code == status
    assert json.loads(record.read_text())["modes"] == {
        "stock": {"open": 3, "closed": 3},
        "layered": {"open": 3, "closed": 3},
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", LOADS)
def test_the_spec_asks_for_mode_and_load_and_names_no_folder(
    mode: str, kind: LoadKind, tmp_path: Path
) -> None:
    spec = crosscheck.Asked("tiny", 2, 8, 4, 1.5).spec(mode, kind, tmp_path)
    assert ("layered" in spec.server.flags) == (mode == "layered")
    assert spec.load.is_closed == (kind == "closed")
    assert str(tmp_path / "tokenizer") in spec.server.flags
    assert str(tmp_path) not in json.dumps(spec.to_json())
