"""Adapters of latent attention, of which tests of LoRA need a CPU reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_adapters_of_latent_attention_add_what_sglangs_kernels_add() -> None:
    script = Path(__file__).with_name("latent_adapters_triton.py")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) == 4
    assert max(differences) < 1e-6
