"""Attention of a step asks FlashInfer for these modules; scripts/compile-flashinfer compiles them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPE = "dtype_q_bf16_dtype_kv_bf16_dtype_o_bf16"
PLAIN = "posenc_0_use_swa_False_use_logits_cap_False"
POD = f"{SHAPE}_head_dim_128_posenc_p_0_use_swa_p_False_use_logits_cap_p_False"
POD += "_posenc_d_0_use_swa_d_False_use_logits_cap_d_False_dtype_idx_i32_f16qk_False"
SIZES = "dtype_idx_i32_head_dim_qk_128_head_dim_vo_128"
OURS = [
    f"batch_prefill_with_kv_cache_{SHAPE}_{SIZES}_{PLAIN}_f16qk_False",  # decode rows by tensor cores, too
    f"batch_decode_with_kv_cache_{SHAPE}_{SIZES}_{PLAIN}",
    f"pod_with_kv_cache_{POD}",
    f"batch_pod_with_kv_cache_{POD}",
]
STOCK = [f"{OURS[0]}_sm90", "norm", "sampling"]


def test_modules_of_a_step(tmp_path: Path) -> None:
    paths = [str(HERE.parent / "cuda_emulation"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "FLASHINFER_WORKSPACE_BASE": str(tmp_path)}
    own["CUDA_HOME"] = str(tmp_path)  # no compiler is needed
    command = [sys.executable, str(HERE / "compile_flashinfer.py"), "h100", "--head-dims", "128", "--list"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == OURS + STOCK
