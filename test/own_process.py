"""What a script found in a process of its own: SGLang's global state allows one model at a time."""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

PR_SET_PDEATHSIG = 1


def found_by(script: Path, out: Path, *words: str, timeout_s: float = 800) -> Any:
    """The JSON that the script writes to `out`, its first argument; a script that fails fails the test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def in_forks(cases: Mapping[str, Callable[[], Any]], *, at_once: bool = False) -> dict[str, Any]:
    """What each case finds in a fork of this script, one after another: SGLang is imported once for all.

    Values must be fit for JSON; a case that fails ends the script.
    """
    gc.freeze()  # a fork's collections then pass over what was imported
    if at_once:
        begun = {name: _begin(case) for name, case in cases.items()}
        return {name: _end(name, *fork) for name, fork in begun.items()}
    return {name: _end(name, *_begin(case)) for name, case in cases.items()}


def _begin(case: Callable[[], Any]) -> tuple[int, IO[str]]:
    answer = tempfile.TemporaryFile("w+")  # noqa: SIM115 - `_end` closes it
    child = os.fork()
    if child == 0:
        _answer_and_exit(case, answer)
    return child, answer


def _end(name: str, child: int, answer: IO[str]) -> Any:
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
    with answer:
        answer.seek(0)
        return json.load(answer)


def _answer_and_exit(case: Callable[[], Any], answer: IO[str]) -> NoReturn:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nothing stays when the script is killed
    status = 1
    try:
        json.dump(case(), answer)
        answer.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
