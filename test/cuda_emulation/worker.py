"""Runs cases on one emulated GPU, each in a fork of this process, so that SGLang is imported once.

Usage: worker.py DEVICE. Reads a case a line from standard input (JSON) and writes its result as a line.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

ATTENTION = "sglang.srt.layers.attention"
IMPORTED = (
    "sglang.srt.managers.scheduler",
    "sglang.srt.models.registry",
    *(
        f"{ATTENTION}.{name}_backend"
        for name in ("dsa", "flashattention", "flashinfer", "triton", "trtllm_mha")
    ),
)
LIMIT_S = 600  # of one case
LOG_CHARACTERS = 6000  # of a failed case, for the reader of the test


def prepare(device: str) -> None:
    """Emulate the device and import everything that a case needs."""
    from emulated_torch import emulate
    from fake_device import DEVICES, pretend_memory

    emulate(DEVICES[device])
    for module in IMPORTED:
        import_module(module)
    pretend_memory(DEVICES[device])
    gc.collect()
    gc.freeze()  # a fork's collections, two a capture session, then pass over what is here
    # SGLang freezes before it captures and thaws then. It must not thaw what is here, nor may what a fork has
    # itself stay frozen: that would never be freed.
    gc.freeze = gc.unfreeze = lambda: None


def in_fork(case: dict[str, Any]) -> dict[str, Any]:
    """The result of a case, or its error with the end of its log."""
    with tempfile.TemporaryDirectory() as folder:
        log, answer = Path(folder) / "log", Path(folder) / "answer.json"
        child = os.fork()
        if child == 0:
            _run_and_exit(case, log, answer)
        os.waitpid(child, 0)
        if answer.exists():
            result: dict[str, Any] = json.loads(answer.read_text())
        else:
            result = {"error": "the process died, or took too long"}
        if "error" in result:
            result["log"] = log.read_text(errors="replace")[-LOG_CHARACTERS:]
        return result


def _run_and_exit(case: dict[str, Any], log: Path, answer: Path) -> None:
    signal.alarm(LIMIT_S)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    try:
        import cases

        result = cases.run(case)
    except BaseException as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    sys.stderr.flush()
    answer.write_text(json.dumps(result))
    os._exit(0)


def main(device: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    prepare(device)
    print(json.dumps({"ready": device}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(in_fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
