"""A server's arguments, judged as at its start."""

from pathlib import Path

from sglang.srt.server_args import ServerArgs, prepare_server_args

LAYERED = ("--prefill-mode", "layered")


def check(model: Path, *flags: str) -> ServerArgs:
    args = prepare_server_args(["--model-path", str(model), "--device", "cpu", *flags])
    args.check_server_args()
    return args
