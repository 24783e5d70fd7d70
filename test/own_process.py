"""What a script found in a process of its own: SGLang's global state allows one model at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def found_by(script: Path, out: Path, *words: str, timeout_s: float = 800) -> Any:
    """The JSON that the script writes to `out`, its first argument; a script that fails fails the test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())
