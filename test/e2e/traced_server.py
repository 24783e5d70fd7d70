"""Starts SGLang's HTTP server with a scheduler that writes one line per step: mode, sizes, positions.

It runs the same on SGLang as released and on patched SGLang, so the traces can be compared.
"""

import json
import os
import sys

from sglang.srt.entrypoints.http_server import launch_server
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.server_args import prepare_server_args
from sglang.srt.utils import kill_process_tree


def run_traced_scheduler(*args, **kwargs):
    trace = open(os.environ["STEP_TRACE"], "a", buffering=1)  # noqa: SIM115 - lives as long as the process
    run_batch = scheduler_module.Scheduler.run_batch

    def traced(self, batch, *rest, **options):
        extend = batch.forward_mode.is_extend()
        trace.write(
            json.dumps(
                {
                    "mode": batch.forward_mode.name,
                    "seq_lens": batch.seq_lens_cpu.tolist(),
                    "prefix_lens": list(batch.prefix_lens) if extend else None,
                    "extend_lens": list(batch.extend_lens) if extend else None,
                    "slots": batch.out_cache_loc.tolist(),
                    "overlap": self.enable_overlap,
                }
            )
            + "\n"
        )
        return run_batch(self, batch, *rest, **options)

    scheduler_module.Scheduler.run_batch = traced
    scheduler_module.run_scheduler_process(*args, **kwargs)


if __name__ == "__main__":
    try:
        launch_server(prepare_server_args(sys.argv[1:]), run_scheduler_process_func=run_traced_scheduler)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
