"""Dataclass fields that are server flags too."""

from dataclasses import field
from typing import Any


def flag_name(field_name: str) -> str:
    """`--slo-ttft-ms` for slo_ttft_ms."""
    return f"--{field_name.replace('_', '-')}"


def flag(default: Any, help_text: str, **checks: Any) -> Any:
    """A dataclass field that is also a server flag; its default is never a mutable value.

    Args:
        default: Its value where it is not given.
        help_text: What `--help` says.
        checks: `choices` are its values; `nargs` is argparse's; `least` is its least value and what to give
            instead of a lower one; `unused` says what becomes of a flag that acts in layered mode only where
            that is not asked for: "warn", so that one set of flags can serve both modes, or "refuse", where
            a file would never come.
    """
    unset = {"choices": None, "nargs": None, "least": None, "unused": "warn"}
    return field(default=default, metadata={"help": help_text, **unset, **checks})
