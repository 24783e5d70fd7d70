"""What may go wrong on the GPU host, how it shows, what to try; the same table is in docs/gpu-host.md.

`python3 test/gpu/risks.py LOG` says what to try for a log.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Risk:
    """One row. `sign` is a regular expression for a log; empty when no log shows it."""

    name: str
    what: str
    fallback: str
    sign: str = ""


RISKS = (
    Risk(
        "R1",
        "a package of the host shadows or clashes with a carried one",
        "`PYTHONPATH` must begin with TARGET/site; carry the one that is missing:"
        " `make_bundle --add NAME==VERSION`",
        r"ImportError|ModuleNotFoundError|PackageNotFoundError|requires .* but",
    ),
    Risk(
        "R2",
        "SGLang's sm_90 kernels do not load",
        "put torch's `nvidia/cu13/lib` into `LD_LIBRARY_PATH`",
        r"Could not load any common_ops|common_ops.*undefined symbol",
    ),
    Risk(
        "R3",
        "SGLang kernels compiled in advance do not load",
        "nothing: they are compiled there, 5 to 8 s each",
        r"Cached JIT module .* failed to load",
    ),
    Risk(
        "R4",
        "nvcc lacks headers or libraries",
        "`. TARGET/env.sh` offers torch's headers and the driver; for `-lcudart` link"
        " `TARGET/lib/libcudart.so` to `nvidia/cu13/lib/libcudart.so.13`",
        r"fatal error: .*\.h|cannot find -l|nvcc: not found|CUDA_HOME.*not set",
    ),
    Risk(
        "R5",
        "FlashInfer's fa2 kernels compiled in advance fail",
        "`rm -r TARGET/site/flashinfer/data/aot/NAME`: FlashInfer then compiles them, about 35 s on 16 cores",
        r"data/aot/(batch_(prefill|decode)|page)",
    ),
    Risk(
        "R6",
        "FlashInfer's fa3 kernels fail (ragged prefill)",
        "`SGLANG_FLASHINFER_USE_PAGED=1`: only fa2 is used",
        r"sm90.*(batch_prefill|ragged)|batch_prefill.*sm90",
    ),
    Risk("R7", "FlashInfer's sampling kernels fail", "`--sampling-backend pytorch`", r"flashinfer.*sampling"),
    Risk(
        "R8",
        "a backend is refused: gpt-oss takes no flashinfer; fa3 needs flash_ops, which is not carried",
        "`--attention-backend triton`",
        r"flash_ops|AssertionError.*attention.backend|GptOss.*requires",
    ),
    Risk(
        "R9",
        "graphs for prefill make the start long, or their capture fails",
        "`--disable-prefill-cuda-graph`; for decode `--cuda-graph-max-bs-decode 64`",
        r"[Cc]apture .*graph.*failed|cudaErrorStreamCapture",
    ),
    Risk(
        "R10",
        "Triton compiles the MoE kernels anew on each fresh machine",
        "bring TARGET/cache/triton home and carry it: `make_bundle --extra FOLDER:cache/triton`",
    ),
    Risk(
        "R11",
        "triton_kernels clash with the host's triton at the first MoE layer",
        "`--moe-runner-backend triton`",
        r"triton_kernels",
    ),
    Risk("R12", "FlashInfer tunes itself at start", "`--disable-flashinfer-autotune`", r"[Aa]utotun"),
    Risk(
        "R13",
        "the pool for pictures takes 1 GiB of the GPU",
        "`--mm-feature-transport cpu`",
        r"CUDA IPC for multimodal|Memory pool.*multimodal",
    ),
    Risk(
        "R14",
        "a start takes longer than a command may",
        "raise `server.ready_timeout_s`; run it again: kernels compiled in the first try are kept",
        r"not ready after",
    ),
    Risk(
        "R15",
        "FlashInfer's POD kernels are not compiled in advance: 3 to 4 minutes on 16 cores",
        "compile them in the background in the first command, bring TARGET/cache home",
        r"pod.*(ninja|Building|compil)",
    ),
    Risk(
        "R16",
        "the GPU's memory is short or still taken by an earlier server",
        "`nvidia-smi`: end the old server; `--mem-fraction-static 0.8`",
        r"out of memory|OutOfMemoryError|Not enough memory",
    ),
    Risk(
        "R17",
        "SGLang is not patched or not the pinned release",
        "`sglang-layered patch apply && sglang-layered patch verify`",
        r"unrecognized arguments: --(prefill-mode|layered)|not patched",
    ),
    Risk(
        "R18",
        "the capture of layered decode graphs fails, or takes too long or too much memory: that is at start,"
        " before the server is ready; the log says how many, why so many, GiB, and what is left",
        "`--layered-graph-granularity 12` (fewer, longer graphs), `0` (none);"
        " `--cuda-graph-max-bs-decode 64`; a lower `--mem-fraction-static` leaves more",
        r"decode_graphs/|Layered decode graphs: .* [0-9]{3,}\.[0-9] s",
    ),
)


def find_risks(text: str) -> list[Risk]:
    """The risks whose signs stand in an error or a log's end."""
    return [risk for risk in RISKS if risk.sign and re.search(risk.sign, text)]


def advice(text: str) -> str:
    """What to try, one line a risk."""
    found = find_risks(text)
    if not found:
        return "no known sign; see the table of risks in docs/gpu-host.md"
    return "\n".join(f"try {risk.name} ({risk.what}): {risk.fallback}" for risk in found)


def table() -> str:
    """The table of docs/gpu-host.md."""
    lines = ["| # | what may go wrong | what to try |", "|---|---|---|"]
    lines += [f"| {risk.name} | {risk.what} | {risk.fallback} |" for risk in RISKS]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n".join(advice(Path(name).read_text(errors="replace")) for name in sys.argv[1:]))
