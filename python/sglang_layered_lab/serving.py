"""A real SGLang server as a child process: start, wait until it answers, measure, stop.

Knows processes, ports and two HTTP paths; knows nothing of modes, prompts or metrics. It ends only what it
started: the server leads a session of its own and is reaped only after its process group was killed, so its
number cannot come to name a stranger.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from sglang_layered.errors import LabError
from sglang_layered.upstream.cpu_choice import CPU_ATTENTION
from sglang_layered.upstream.cpu_kernels import cuda_driver_available, other_build_installed

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
POLL_S = 0.2
LOG_TAIL_LINES = 15


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago.

    It is below the range that systems take the ports of outgoing connections from: a server binds it half a
    minute later.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise LabError(f"no free port in {PORTS.start} to {PORTS.stop - 1}; end other servers")


def server_command(python: str, model_path: Path, port: int, args: Sequence[str]) -> list[str]:
    """Build the command line; without a CUDA driver it gets `--device cpu`, unless `args` name a device."""
    command = [python, "-m", "sglang.launch_server", "--model-path", str(model_path)]
    command += ["--host", HOST, "--port", str(port), *args]
    named = any(arg == "--device" or arg.startswith("--device=") for arg in args)
    return command if named or cuda_driver_available() else [*command, "--device", "cpu"]


def measured_attention() -> str | None:
    """The attention backend of servers that are compared here; None: SGLang's own choice.

    On a CPU without native kernels that is `torch_native`, which computes the cached rows of every chunk
    again: a comparison with it would tell of the backend and not of chunks.
    """
    return None if cuda_driver_available() or other_build_installed() else CPU_ATTENTION


def measured_flags(args: Sequence[str]) -> list[str]:
    """Flags of a server that is measured: every mode attends alike, unless `args` name a backend."""
    backend = measured_attention()
    named = any("attention-backend" in arg for arg in args)
    return [*args] if named or backend is None else [*args, "--attention-backend", backend]


def server_environment(overrides: Mapping[str, str] | None) -> dict[str, str]:
    """Join our own environment, the CPU engine where there is no CUDA driver, and `overrides`."""
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}  # so that the log's end is what happened last
    if not cuda_driver_available():
        environment.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    return environment | dict(overrides or {})


def end_servers_on_signals() -> None:
    """Make SIGTERM and SIGHUP end this process as Ctrl-C does, so that `with` blocks end their servers.

    Also where SIGINT is ignored, as it is in a shell's background job.
    """
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)


class ServerProcess:
    """One SGLang server on loopback, alive inside a `with` block.

    `start()` returns once GET /health answers 200; a server that dies, or is not ready in time, raises
    LabError with the end of its log. `start()` and `stop()` can also be called outside a `with` block.
    `command` replaces the whole command line, `model_path`, `args` and `python` included; tests use that.
    """

    def __init__(
        self,
        model_path: Path,
        args: Sequence[str] = (),
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        port: int | None = None,
        command: Sequence[str] | None = None,
        ready_timeout_s: float = 300.0,
        grace_s: float = 15.0,
    ) -> None:
        self.port = free_port() if port is None else port
        self.log_path = log_path
        self.command = list(command or server_command(python, model_path, self.port, args))
        self.environment = server_environment(env)
        self.ready_timeout_s, self.grace_s = ready_timeout_s, grace_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """Root of the HTTP API, without a trailing slash."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server's first process, which is also its process group."""
        if self._process is None:
            raise LabError("the server is not running")
        return self._process.pid

    def __enter__(self) -> "ServerProcess":
        """Start the server and wait until it answers."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Start the process; return when it is ready, or stop it and raise."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise LabError(f"port {self.port} cannot be used ({error}); choose another") from error
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM to the server; at most `grace_s` seconds later SIGKILL to its group and children; wait."""
        if self._process is None:
            return
        members = self._tree()
        self.resume()  # a paused process would not hear of its end
        try:
            os.kill(self.pid, signal.SIGTERM)  # unreaped, so the number is still ours even if it has ended
            deadline = time.monotonic() + self.grace_s
            while not self.has_exited() and time.monotonic() < deadline:
                time.sleep(POLL_S / 4)
        finally:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            for member in members:  # some may have left the group; psutil never kills a recycled process id
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, timeout=self.grace_s)

    def pause(self) -> None:
        """Stop all its processes where they are: an idle SGLang server polls and so takes a core."""
        for member in reversed(self._tree()):
            with suppress(psutil.NoSuchProcess):
                member.suspend()

    def resume(self) -> None:
        """Let all its processes go on."""
        for member in self._tree():
            with suppress(psutil.NoSuchProcess):
                member.resume()

    def has_exited(self) -> bool:
        """Whether the server's first process has ended; it is not reaped by asking."""
        if self._process is None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def memory_bytes(self) -> int:
        """Memory of the process tree now: proportional set sizes, so shared pages count once."""
        total_bytes = 0
        for member in self._tree():
            with suppress(psutil.Error):  # it may end while we look
                total_bytes += member.memory_full_info().pss
        return total_bytes

    def flush_cache(self, timeout_s: float = 30.0) -> None:
        """Empty the prefix cache, waiting up to `timeout_s` seconds for running requests to end."""
        url = f"{self.base_url}/flush_cache"
        reply = httpx.post(url, params={"timeout": timeout_s}, timeout=timeout_s + 10, trust_env=False)
        if reply.status_code != 200:
            raise LabError(f"the server would not flush its cache: {reply.text.strip()}")

    def log_tail(self) -> str:
        """Last lines of the log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not self._is_healthy(max(deadline - time.monotonic(), POLL_S)):
            late = time.monotonic() >= deadline
            if late or self.has_exited():
                what = f"not ready after {self.ready_timeout_s:g} s" if late else "ended before it was ready"
                raise LabError(f"server {what}; {self.log_path} ends with\n{self.log_tail()}")
            time.sleep(POLL_S)

    def _is_healthy(self, timeout_s: float) -> bool:
        try:
            return httpx.get(f"{self.base_url}/health", timeout=timeout_s, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
