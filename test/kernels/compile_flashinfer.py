"""Compiles FlashInfer's modules for a GPU that is not there, source by source: scripts/compile-flashinfer."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tvm_ffi

from fake_device import DEVICES
from flashinfer_modules import modules_of
from sglang_layered_lab.provenance import current_commit, installed_versions, this_machine


@dataclass
class Module:
    """What became of one, by source: seconds, bytes of the object, end of an error (`link`, too)."""

    name: str
    num_sources: int
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # for another time
    loaded: bool = False


def compile_module(spec: Any, *, sources: str, until_s: float) -> Module:
    """Compile sources that the pattern finds by file name; begin none after `until_s` (monotonic clock)."""
    module = Module(spec.name, len(spec.sources))
    spec.write_ninja()
    for source in spec.sources:
        suffix = ".cuda.o" if source.suffix == ".cu" else ".o"
        target = spec.build_dir / f"{source.parent.name}_{source.stem}{suffix}"
        if not re.search(sources, source.name):
            continue
        if time.monotonic() > until_s and not target.exists():
            module.left.append(source.name)
            continue
        error = _make(spec, target)
        if error:
            module.errors[source.name] = error
        else:
            module.seconds[source.name] = _seconds_of(spec, target)
            module.bytes[source.name] = target.stat().st_size
        print(f"{source.name}: {error or module.seconds[source.name]}", file=sys.stderr, flush=True)
    if len(module.seconds) == module.num_sources:
        _load(spec, module)
    return module


def _make(spec: Any, target: Path) -> str:
    """Nothing, or the end of the compiler's words."""
    command = ["ninja", "-C", str(spec.build_dir), "-f", str(spec.ninja_path), "-j1", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr)[-2000:] if done.returncode else ""


def _seconds_of(spec: Any, target: Path) -> float:
    """From ninja's log, which also knows what an earlier run compiled."""
    lines = (spec.build_dir / ".ninja_log").read_text().splitlines()
    began, ended = next(line.split("\t")[:2] for line in reversed(lines) if f"\t{target}\t" in line)
    return (int(ended) - int(began)) / 1000


def _load(spec: Any, module: Module) -> None:
    error = _make(spec, spec.jit_library_path)
    try:
        if not error:
            tvm_ffi.load_module(str(spec.jit_library_path))
            module.loaded = True
    except Exception as refused:  # whatever the linker misses
        error = str(refused)
    if error:
        module.errors["link"] = error


def record_of(device: str, modules: list[Module]) -> dict[str, Any]:
    """What was compiled, by what, where."""
    compiler = [f"{os.environ['CUDA_HOME']}/bin/nvcc", "--version"]
    return {
        "device": device,
        "nvcc": subprocess.check_output(compiler, text=True).splitlines()[-1],
        "versions": installed_versions("flashinfer-python"),
        "machine": this_machine(),
        "commit": current_commit(),
        "modules": [asdict(module) for module in modules],
    }


def main() -> int:
    """Print or write a record; 1 if a source or a library failed, 2 if the time was too short for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", choices=DEVICES)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--sources", default="", help="pattern that a source's file name must have")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="begin no source after so long")
    parser.add_argument("--list", action="store_true", help="only name the modules")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    specs = {spec.name: spec for size in args.head_dims for spec in modules_of(DEVICES[args.device], size)}
    if args.list:
        print("\n".join(specs))
        return 0
    if not any(re.search(args.sources, source.name) for spec in specs.values() for source in spec.sources):
        parser.error(f"no source is named like {args.sources!r}")
    until_s = time.monotonic() + args.budget_s
    modules = [compile_module(spec, sources=args.sources, until_s=until_s) for spec in specs.values()]
    text = json.dumps(record_of(args.device, modules), indent=1)
    (args.record.write_text if args.record else print)(text + "\n")
    if any(module.errors for module in modules):
        return 1
    return 2 if any(module.left for module in modules) else 0


if __name__ == "__main__":
    sys.exit(main())
