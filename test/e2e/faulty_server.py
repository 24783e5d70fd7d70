"""Starts SGLang's HTTP server with a scheduler in which one function raises, from its n-th call on.

FAULT=module:attribute:n names it. It runs the same on SGLang as released and on patched SGLang.
"""

import os
import sys
from importlib import import_module
from itertools import count

from sglang.srt.entrypoints.http_server import launch_server
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils import kill_process_tree


def inject(fault: str) -> None:
    module, path, first = fault.split(":")
    owner = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), count(1)

    def failing(*args, **kwargs):
        if next(calls) >= int(first):
            raise RuntimeError(f"injected fault in {path}")
        return real(*args, **kwargs)

    setattr(owner, name, failing)
    for place in [*sys.modules.values()]:  # SGLang 0.5.23 calls seams by names of another module
        if getattr(place, "__dict__", {}).get(name) is real:
            setattr(place, name, failing)


def run_faulty_scheduler(*args, **kwargs):
    inject(os.environ["FAULT"])
    run_scheduler_process(*args, **kwargs)


if __name__ == "__main__":
    try:
        launch_server(prepare_server_args(sys.argv[1:]), run_scheduler_process_func=run_faulty_scheduler)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
