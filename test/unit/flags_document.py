"""Every flag of the package with its values, default and meaning, as Markdown: made from `LayeredConfig`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import Field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from sglang_layered.config import LAYERED_FLAGS, LayeredConfig
from sglang_layered.flag_fields import flag_name

HEADER = ("flag", "value", "default", "meaning")
NAMES = {int: "N", float: "X", str: "TEXT"}
WITHOUT_THE_MODE = {"warn": "", "refuse": " Refused without `--prefill-mode layered`."}


def any_mode_table() -> str:
    """Flags that act in either prefill mode."""
    return _table(item for item in fields(LayeredConfig) if not item.name.startswith(LAYERED_FLAGS))


def layered_table() -> str:
    """Flags that act in layered mode only."""
    return _table(item for item in fields(LayeredConfig) if item.name.startswith(LAYERED_FLAGS))


def _table(items: Iterator[Field[Any]]) -> str:
    rows = [HEADER, ("---",) * len(HEADER), *map(_row, items)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(item: Field[Any]) -> tuple[str, ...]:
    default = "" if item.default is None or item.default is False else f"`{item.default}`"
    ending = WITHOUT_THE_MODE[item.metadata["unused"]]
    meaning = re.sub("^Layered mode[:,]? ", "", item.metadata["help"]).replace("|", "\\|")
    return f"`{flag_name(item.name)}`", _value(item), default, meaning[0].upper() + meaning[1:] + ending


def _value(item: Field[Any]) -> str:
    if choices := item.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in choices)
    hint = get_type_hints(LayeredConfig)[item.name]
    [kind] = [option for option in get_args(hint) or (hint,) if option is not NoneType]
    if kind is bool:
        return ""
    name = NAMES[(get_args(kind) or (kind,))[0]]
    return f"{name} ..." if item.metadata["nargs"] else name
