"""ServerProcess against small fake servers: no SGLang, no model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sglang_layered.errors import LabError
from sglang_layered_lab.serving import ServerProcess, free_port, server_command, server_environment

# A server with one child; `hold` makes both deaf to SIGTERM, `away` puts the child into a session of its own.
FAKE_SERVER = """
import http.server, signal, subprocess, sys
port, manners = int(sys.argv[1]), sys.argv[2]
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" if manners == "hold" else ""
code = deaf + "import time; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=manners == "away")
if manners == "hold":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child", child.pid, flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(200 if self.path.startswith(("/health", "/flush_cache")) else 404)
        self.end_headers()
        self.wfile.write(b"done")
    do_GET = do_POST = answer

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake_server(tmp_path: Path, manners: str = "polite", grace_s: float = 5.0) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-c", FAKE_SERVER, str(port), manners]
    log_path = tmp_path / "logs" / "server.log"
    return ServerProcess(tmp_path, port=port, command=command, log_path=log_path, grace_s=grace_s)


def child_of(server: ServerProcess) -> psutil.Process:
    deadline = time.monotonic() + 10
    while "child" not in server.log_path.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return psutil.Process(int(server.log_path.read_text().split()[1]))


def test_ready_server_answers_and_reports_memory(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
        assert 2**20 < server.memory_bytes() < 2**30
        server.flush_cache()
        assert not server.has_exited()


@pytest.mark.parametrize("manners", ["polite", "hold", "away"])
def test_stop_ends_the_whole_tree_and_nothing_else(tmp_path: Path, manners: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        with fake_server(tmp_path, manners, grace_s=0.5) as server:
            root, child = psutil.Process(server.pid), child_of(server)
        assert not root.is_running()
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert stranger.poll() is None
        stranger.kill()


def test_stop_ends_children_of_a_server_that_already_died(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        child = child_of(server)
        os.kill(server.pid, signal.SIGKILL)
        while not server.has_exited():
            time.sleep(0.02)
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def until_stopped(process: psutil.Process) -> None:
    """A process that is in a system call stops when it comes back."""
    end = time.monotonic() + 5
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end, process.status()
        time.sleep(0.01)


def test_a_paused_server_stands_still_goes_on_and_can_be_stopped(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        root, child = psutil.Process(server.pid), child_of(server)
        server.pause()
        until_stopped(root)
        until_stopped(child)
        server.resume()
        server.flush_cache()
        server.pause()
    assert not root.is_running() and (not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_sigterm_runs_the_ends_of_with_blocks_even_where_sigint_is_ignored(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from sglang_layered_lab.serving import end_servers_on_signals\n"
        "end_servers_on_signals()\n"
        "try:\n    print('ready', flush=True); time.sleep(600)\n"
        "finally:\n    print('ended', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "ended\n"


def test_stop_twice_is_harmless_and_pid_then_refuses(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        server.stop()
        server.stop()
        assert server.has_exited()
    with pytest.raises(LabError, match="not running"):
        _ = server.pid


def test_dying_server_shows_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; [print('line', n) for n in range(40)]; sys.exit('no such model')"
    log_path = tmp_path / "server.log"
    server = ServerProcess(tmp_path, command=[sys.executable, "-c", code], log_path=log_path)
    with pytest.raises(LabError) as caught:
        server.start()
    lines = str(caught.value).splitlines()
    assert "ended before it was ready" in lines[0] and str(log_path) in lines[0]
    assert len(lines) == 1 + 15
    assert lines[-1] == "no such model"


def test_server_that_never_answers_times_out_and_is_stopped(tmp_path: Path) -> None:
    code = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    log_path = tmp_path / "server.log"
    command = [sys.executable, "-c", code]
    server = ServerProcess(tmp_path, command=command, log_path=log_path, ready_timeout_s=1.5)
    with pytest.raises(LabError, match=r"not ready after 1\.5 s"):
        server.start()
    assert not psutil.pid_exists(int(log_path.read_text().split()[1]))


def test_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with fake_server(tmp_path) as first:
        second = ServerProcess(tmp_path, port=first.port, command=["false"], log_path=tmp_path / "second.log")
        with pytest.raises(LabError, match=str(first.port)):
            second.start()
        assert not second.log_path.exists()


def test_failing_block_stops_the_server(tmp_path: Path) -> None:
    server = fake_server(tmp_path)
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert server.has_exited()


@pytest.mark.parametrize("cuda", [True, False])
def test_device_is_added_only_without_a_driver(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    monkeypatch.setattr("sglang_layered_lab.serving.cuda_driver_available", lambda: cuda)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    command = server_command("python", Path("model"), 1234, ["--tp", "1"])
    assert (command[-2:] == ["--device", "cpu"]) is not cuda
    assert "--device" not in server_command("python", Path("model"), 1, ["--device=cuda"])
    assert ("SGLANG_USE_CPU_ENGINE" in server_environment(None)) is not cuda
    assert server_environment({"SGLANG_USE_CPU_ENGINE": "0"})["SGLANG_USE_CPU_ENGINE"] == "0"
