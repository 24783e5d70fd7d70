"""Every Triton kernel of a layered step compiles for Hopper and for Blackwell, which needs no device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from triton_launches import KERNELS

HERE = Path(__file__).resolve().parent
CUDA_EMULATION = HERE.parent / "cuda_emulation"


@pytest.mark.parametrize("device", ["h100", "b200"])
def test_what_a_step_launches_compiles(device: str, tmp_path: Path) -> None:
    paths = [str(CUDA_EMULATION), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(HERE / "compile_launches.py"), device]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert Counter(variant.split()[0] for variant in sizes) == KERNELS
    assert all(size > 1000 for size in sizes.values())
