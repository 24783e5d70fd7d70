"""Prints the flags of the tests' servers, as they are where this runs: by name, as JSON."""

from __future__ import annotations

import json
import sys

from tiny_models import EXACT, tiny_model

import features_servers
import servers

NAMED = {
    "EXACT": EXACT,
    "servers.COMMON": servers.COMMON,
    "servers.LAYERED": (*servers.COMMON, *servers.LAYERED),
}
for name in ("FLAGS", "LAYERED", "SESSION_FLAGS", "BFLOAT16_FLAGS"):
    flags = (*features_servers.COMMON, *features_servers.FLAGS, *getattr(features_servers, name))
    NAMED[f"features_servers.{name}"] = flags

commands = {
    f"{name}, {arch}": ["--model-path", str(tiny_model(arch)), *flags]
    for name, flags in NAMED.items()
    for arch in ("qwen3_moe", "llama")
}
json.dump(commands, sys.stdout)
