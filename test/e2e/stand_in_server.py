"""Starts SGLang's HTTP server with what a CPU lacks for quantized weights, LoRA, HiCache or drafts.

STAND_IN names it. Its processes are forked, so they have what is put in place here (`servers.forked`).
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module

from sglang.srt.entrypoints.http_server import launch_server
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils import kill_process_tree


def quantized() -> None:
    """The references of kernels/cpu instead of AMX."""
    on_cpu = import_module("quantized_on_cpu")
    on_cpu.run_without_amx()
    on_cpu.use_ops()


def lora() -> None:
    import_module("lora_models").leave_memory_unpinned()


def hicache() -> None:
    import_module("hicache_on_cpu").stand_in()


def drafts() -> None:
    """What NGRAM looks drafts up in is compiled here: a scheduler has another environment then."""
    on_cpu = import_module("drafts_on_cpu")
    on_cpu.stand_in()
    on_cpu.load_ngram_corpus()


STAND_INS: dict[str, Callable[[], None]] = {
    "quantized": quantized,
    "lora": lora,
    "hicache": hicache,
    "drafts": drafts,
}

if __name__ == "__main__":
    STAND_INS[os.environ["STAND_IN"]]()
    try:
        launch_server(prepare_server_args(sys.argv[1:]))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
