"""A server's arguments, judged as at its start."""

from pathlib import Path
from typing import Any

from sglang.srt.server_args import prepare_server_args

from release_differences import resolve
from sglang_layered.upstream.releases import arguments

LAYERED = ("--prefill-mode", "layered")


def check(model: Path, *flags: str) -> Any:
    """The arguments as SGLang acts on them."""
    args = prepare_server_args(["--model-path", str(model), "--device", "cpu", *flags])
    resolve(args)
    args.check_server_args()
    return arguments.resolved(args)
