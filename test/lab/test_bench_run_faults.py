"""What goes wrong around a run of `bench`: no server, no place for the record, Ctrl-C, a very short run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from bench_checks.client_honesty import fake_server
from click.testing import CliRunner

from sglang_layered.errors import BenchError, ConfigError, LayeredPrefillError
from sglang_layered.files import check_output
from sglang_layered.metrics.slo import SloLimits
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.metrics import Window, measure
from sglang_layered_lab.bench.record import BenchRecord
from sglang_layered_lab.bench.server_state import flush_cache, put_in_force
from sglang_layered_lab.bench.spec import spec_from
from sglang_layered_lab.bench.spec_errors import SpecError
from sglang_layered_lab.bench.trace import Arrival, RequestTrace
from sglang_layered_lab.bench.workload import Server
from sglang_layered_lab.cli.bench import bench
from sglang_layered_lab.cli.bench_run import kept_text, sweep
from sglang_layered_lab.serving import free_port
from test_bench_inputs import SPEC, problems_of, values_of

PROGRAM = [sys.executable, "-m", "sglang_layered"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_server() as address:
        yield address


@pytest.fixture
def spec_path(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SPEC.replace("http://127.0.0.1:1", url))
    return path


def refused(*arguments: str | Path) -> str:
    """What our own error of a `bench` command says."""
    result = CliRunner().invoke(bench, [str(each) for each in arguments])
    assert isinstance(result.exception, LayeredPrefillError), (result.output, result.exception)
    return str(result.exception)


def test_a_url_where_nobody_listens_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SPEC.replace("127.0.0.1:1", f"127.0.0.1:{free_port()}"))
    done = subprocess.run([*PROGRAM, "bench", "run", path], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "no server answers at http://127.0.0.1" in done.stderr and "server.url" in done.stderr


def test_no_question_to_a_server_ends_in_a_traceback() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for ask in (flush_cache, lambda url: put_in_force(url, {"layered_num_groups": 2})):
        with pytest.raises(BenchError, match="no server answers"):
            ask(nobody)


def test_a_server_that_speaks_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(200, text="<html>"))
    with pytest.raises(BenchError, match=r"http://x/set_internal_state answers <html>; it refused"):
        put_in_force("http://x", {"layered_num_groups": 2})
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(404, text="<html>"))
    with pytest.raises(BenchError, match=r"status 404 .*; see that it is an SGLang server"):
        flush_cache("http://x")


def test_an_output_that_cannot_be_written_is_found_before_the_first_request(
    spec_path: Path, url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = httpx.get(f"{url}/written").json()
    for out in (Path("/proc/x/o.json"), tmp_path / "file" / "o.json", tmp_path / "folder"):
        assert re.fullmatch(
            r"--out /.*: .+; give a path that can be written", refused("run", spec_path, "--out", out)
        )
    assert httpx.get(f"{url}/written").json() == before
    spec = spec_path.read_text().replace('[run]\nname = "plain"', "[slo]\ntbt_ms = 50")
    (tmp_path / "w.toml").write_text(spec + '[sweep]\nname = "w"\n[[arms]]\nname = "a"\nmode = "m"\n')
    assert "can be written" in refused("sweep", tmp_path / "w.toml", "--out", tmp_path / "file")
    assert "can be written" in refused("kernels", "--out", tmp_path / "file" / "k.json")
    assert httpx.get(f"{url}/written").json() == before


def test_trying_to_write_leaves_nothing_but_the_folder(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b.json")
    assert [each.name for each in tmp_path.rglob("*")] == ["a"]
    with pytest.raises(ConfigError, match=r"^--publish .*: Is a directory; give a path"):
        check_output(tmp_path / "a", "--publish")


def test_a_record_that_no_longer_fits_on_the_disk_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BenchError, match=r"o\.json cannot be written \(No space left on device\): .* kept"):
        BenchRecord({}, {}).write(tmp_path / "o.json")


def test_what_a_dry_run_accepts_starts(tmp_path: Path) -> None:
    """Each of these was accepted by --dry-run and refused later, some after the server's start."""
    lengths = {name: {"distribution": "fixed", "tokens": 4} for name in ("prompt", "output")}
    closed = {"arrivals": "closed", "num_clients": 2}
    made = {"model": {"arch": "qwen3_moe"}}
    for sections, key in (
        ({"workload": {"lengths": lengths}}, "workload.vocab"),
        ({"workload": {"lengths": lengths, "vocab": [1, 9], "inputs": "text"}}, "workload.inputs"),
        ({"workload": {"lengths": lengths, "topics": True}}, "workload.topics"),
        ({"load": closed | {"duration_s": 5.0}}, "load.num_requests"),
        ({"server": made, "workload": {"lengths": lengths, "topics": True}}, "workload.topics"),
    ):
        assert any(each.startswith(f"{key}: ") for each in problems_of(values_of(**sections))), sections
    for sections, key in (
        ({"server": made, "workload": {"lengths": lengths, "vocab": [1, 5000]}}, "workload.vocab"),
        ({"server": {"model": str(tmp_path / "none")}}, "server.model"),
    ):
        with pytest.raises(SpecError, match=rf"^{key}: "):
            Load.of(spec_from(values_of(**sections)))
    path = tmp_path / "s.toml"
    path.write_text(SPEC.replace('url = "http://127.0.0.1:1"', f'model = "{tmp_path}/none"'))
    assert "holds no config.json" in refused("run", path, "--dry-run")
    text = path.read_text().replace('[run]\nname = "plain"', "")
    path.write_text(text + '[sweep]\nname = "w"\n[[arms]]\nname = "a"\nmode = "m"\n')
    assert "holds no config.json" in refused("sweep", path, "--dry-run")


def test_a_window_that_holds_nothing_is_told_before_the_load(url: str) -> None:
    spec = spec_from(
        values_of(
            server={"url": url},
            load={"arrivals": "constant", "rate_per_s": 100.0, "num_requests": 2, "warmup_s": 5.0},
        )
    )
    from sglang_layered_lab.bench.run import run_repetition

    before = httpx.get(f"{url}/written").json()
    with pytest.raises(SpecError, match=r"load\.num_requests"):
        run_repetition(Load.of(spec), Server(url, 9), 0)
    assert httpx.get(f"{url}/written").json() == before


def test_a_short_run_whose_requests_all_ended_has_no_throughput_of_zero() -> None:
    """Both were due at once and ended later than the last was due: the window is shorter than an answer."""
    traces = tuple(
        RequestTrace(name, due_s, due_s, 10, 2, (Arrival(1.0 + due_s, 1), Arrival(2.0 + due_s, 2)))
        for name, due_s in (("a", 0.0), ("b", 0.5))
    )
    seen = measure(traces, Window(0.0, 0.500001), SloLimits())
    assert (seen.throughput.requests_per_s, seen.throughput.output_tokens_per_s) == (None, None)
    later = measure(traces, Window(0.0, 2.2), SloLimits()).throughput
    assert later.requests_per_s == pytest.approx(1 / 2.2) and later.output_tokens_per_s == pytest.approx(
        3 / 2.2
    )
    failed = tuple(replace(each, arrivals=(), error="broken") for each in traces)
    assert measure(failed, Window(0.0, 0.6), SloLimits()).throughput.requests_per_s == 0.0


def test_a_run_says_its_whole_throughput_and_knows_its_total(
    spec_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang_layered_lab.cli import bench_run

    totals: list[float | None] = []

    class Bars(bench_run.Progress):
        def add_task(self, *args: object, total: float | None = None, **more: object) -> object:
            totals.append(total)
            return super().add_task("", total=total)

    monkeypatch.setattr(bench_run, "Progress", Bars)
    result = CliRunner().invoke(bench, ["run", str(spec_path), "--out", str(tmp_path / "o.json")])
    assert result.exit_code == 0, result.output
    assert totals == [3]
    assert "the same, whole run" in result.output and "0.00" not in result.output.split("whole run")[1][:40]


def test_a_load_by_the_clock_tells_its_total_while_it_runs(url: str) -> None:
    from sglang_layered_lab.bench.client import BenchClient
    from sglang_layered_lab.bench.client_data import PlannedRequest, RunClock

    client = BenchClient.__new__(BenchClient)
    BenchClient.__init__(client, url, [PlannedRequest("a", 0.0, (1,), 1), PlannedRequest("b", 0.0, (1,), 1)])
    client.clock = RunClock()
    client.clock.start()
    assert client._progress().num_requests == 2


def test_ctrl_c_ends_with_130_and_says_what_is_kept(tmp_path: Path, url: str) -> None:
    text = SPEC.replace("http://127.0.0.1:1", url).replace(
        'name = "plain"', 'name = "plain"\nrepetitions = 2'
    )
    text = text.replace("num_requests = 3", "num_requests = 20").replace("tokens = 4", "tokens = 60")
    (tmp_path / "s.toml").write_text(text)
    out = tmp_path / "o.json"
    running = subprocess.Popen(
        [*PROGRAM, "bench", "run", "s.toml", "--out", "o.json"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not out.exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert [line for line in said.splitlines() if line] == [
        "o.json keeps 1 of 2 repetitions; the one that ran is lost. The same command goes on",
        "sglang-layered: stopped",
    ]
    assert len(BenchRecord.read(out).repetitions) == 1
    assert "no repetition was finished" in kept_text(tmp_path / "none.json", 2)


def test_a_wrong_option_is_still_shown_by_click() -> None:
    done = subprocess.run([*PROGRAM, "bench", "run"], capture_output=True, text=True)
    assert done.returncode == 2 and "Missing argument" in done.stderr
    assert subprocess.run([*PROGRAM, "--version"], capture_output=True).returncode == 0


def test_a_sweep_that_is_stopped_says_what_is_kept(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang_layered_lab.bench import sweep as sweeps

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_sweep", stopped)
    text = SPEC.replace("http://127.0.0.1:1", url).replace('[run]\nname = "plain"', "")
    (tmp_path / "w.toml").write_text(text + '[sweep]\nname = "w"\n[[arms]]\nname = "a"\nmode = "m"\n')
    result = CliRunner().invoke(sweep, [str(tmp_path / "w.toml"), "--out", str(tmp_path / "out")])
    assert f"turns that ended are kept in {tmp_path / 'out'}, the one that ran is lost" in result.output
    assert json.dumps(result.exit_code) == "1"  # click's; the program makes it 130
