"""A process a device that runs cases on that emulated GPU, and the models that it serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
PATHS = [HERE, *(PROJECT / folder for folder in ("test", "test/runner", "test/models", "test/e2e", "python"))]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "SGLANG_ENABLE_JIT_DEEPGEMM": "0",
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0",
}


GENERATIONS = {"h100": "h100", "h200": "h100", "b200": "b200"}  # the device whose worker it asks


def environment(driver: Path) -> dict[str, str]:
    """A process's, with a CUDA driver."""
    paths = [*map(str, PATHS), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = [str(driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    own = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PYTHONPATH": os.pathsep.join(paths)}
    own["HF_MODULES_CACHE"] = str(driver / "modules")  # classes that models bring
    inherited = {name: value for name, value in os.environ.items() if name != "SGLANG_USE_CPU_ENGINE"}
    return inherited | ENVIRONMENT | own


def build_stub_driver(folder: Path) -> None:
    """Put a libcuda.so.1 without a device into a folder.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("emulating CUDA needs a C compiler (cc) for a stub of the driver library")
    library = folder / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "libcuda_stub.c")], check=True)
    (folder / "libcuda.so").symlink_to(library.name)


class Worker:
    """A process with one emulated GPU."""

    def __init__(self, device: str, driver: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=environment(driver),
        )
        self._answers: dict[str, Any] = {}
        assert self._line() == {"ready": device}

    def ask(self, case: dict[str, Any]) -> dict[str, Any]:
        """The result of a case; asked again, the same."""
        asked = json.dumps(case)
        if asked not in self._answers:
            assert self._process.stdin is not None
            print(asked, file=self._process.stdin, flush=True)
            self._answers[asked] = self._line()
        result: dict[str, Any] = self._answers[asked]
        return result

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker ended with {self._process.wait()}"
        return json.loads(line)

    def stop(self) -> None:
        self._process.communicate()


class Workers:
    """Those that were asked for, kept until the end of the tests."""

    def __init__(self, driver: Path) -> None:
        self.driver = driver
        self._workers: dict[str, Worker] = {}

    def on(self, device: str) -> Worker:
        """A worker of the device's generation: SGLang decides by it while it is imported."""
        generation = GENERATIONS[device]
        if generation not in self._workers:
            self._workers[generation] = Worker(generation, self.driver)
        return self._workers[generation]

    def resolve(self, device: str, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """What each command resolves to, or its error."""
        return self._of_commands("resolve", device, commands)

    def refusals(self, device: str, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """What layered mode says to each command: `reasons`, the refusal `told`, and an error of `stock`."""
        return self._of_commands("refusals", device, commands)

    def _of_commands(self, kind: str, device: str, commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        result = self.on(device).ask({"kind": kind, "device": device, "commands": list(commands)})
        assert "error" not in result, result["error"] + "\n" + result["log"]
        answers: list[dict[str, Any]] = result["commands"]
        return answers

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.stop()
