"""Servers that stay alive between their turns, so that rounds can interleave them. It knows no load.

One server runs at a time. The others are stopped where they are (SIGSTOP): they take memory but no processor.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from sglang_layered.errors import LabError
from sglang_layered_lab.bench.run import attached, model_folder, process_of, started
from sglang_layered_lab.bench.spec import BenchSpec
from sglang_layered_lab.bench.workload import Server
from sglang_layered_lab.serving import ServerProcess

MIN_FREE_BYTES = 5 * 2**30  # what a small server and its start take, and some air


class ServerPool:
    """At most `max_servers` alive, fewer where memory runs out; the one whose turn is longest ago makes room.

    A context manager that ends all of them. `on_start` is called with the spec and the server after each
    start, before its first turn.
    """

    def __init__(
        self, max_servers: int, log_folder: Path, on_start: Callable[[BenchSpec, Server], None]
    ) -> None:
        self.max_servers = max_servers
        self.num_starts = 0
        self._log_folder, self._on_start = log_folder, on_start
        self._alive: OrderedDict[str, ServerProcess] = OrderedDict()  # the last has the turn

    def __enter__(self) -> "ServerPool":
        return self

    def __exit__(self, *error: object) -> None:
        with ThreadPoolExecutor() as threads:  # each takes seconds
            list(threads.map(ServerProcess.stop, self._alive.values()))
        self._alive.clear()

    def turn_of(self, spec: BenchSpec) -> Server:
        """Give the turn to the spec's server; start it if it is not alive. One at a url always runs.

        Raises:
            LabError: it does not start, or has ended since its last turn; it has the end of the log.
        """
        if spec.server.url is not None:
            return attached(spec, spec.server.url)
        key = key_of(spec)
        self._pause_current(unless=key)
        process = self._alive.get(key)
        model = model_folder(spec)
        if process is None:
            return self._started(spec, key, model)
        self._alive.move_to_end(key)
        process.resume()
        if process.has_exited():
            del self._alive[key]
            tail = process.log_tail()
            process.stop()
            raise LabError(f"the server ended between two turns; {process.log_path} ends with\n{tail}")
        return started(spec, model, process.base_url)

    def _started(self, spec: BenchSpec, key: str, model: Path) -> Server:
        while self._alive and (len(self._alive) >= self.max_servers or _free_bytes() < MIN_FREE_BYTES):
            self._alive.popitem(last=False)[1].stop()
        self.num_starts += 1
        process = process_of(spec, model, self._log_folder / f"server-{key}-{self.num_starts}.log")
        process.start()
        self._alive[key] = process
        server = started(spec, model, process.base_url)
        self._on_start(spec, server)
        return server

    def _pause_current(self, unless: str) -> None:
        if self._alive and next(reversed(self._alive)) != unless:
            with suppress(LabError):
                next(reversed(self._alive.values())).pause()


def _free_bytes() -> int:
    return int(psutil.virtual_memory().available)


def key_of(spec: BenchSpec) -> str:
    """Equal for specs that the same server serves."""
    server = json.dumps(asdict(replace(spec.server, settings={})), sort_keys=True)
    return hashlib.sha256(server.encode()).hexdigest()[:12]
