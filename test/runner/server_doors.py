"""A server's arguments, judged as at its start."""

from pathlib import Path
from typing import Any

from sglang.srt.server_args import ServerArgs, prepare_server_args

from sglang_layered.upstream.releases import arguments

LAYERED = ("--prefill-mode", "layered")


def check(model: Path, *flags: str) -> Any:
    """The arguments as SGLang acts on them."""
    return judge(prepare_server_args(["--model-path", str(model), "--device", "cpu", *flags]))


def judge(args: ServerArgs) -> Any:
    if hasattr(args, "resolve_once"):  # 0.5.17 has resolved them when they were made
        args.resolve_once()
    args.check_server_args()
    return arguments.resolved(args)
