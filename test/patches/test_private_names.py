"""Private names of SGLang's are touched in `upstream/` alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sglang_layered.patching.port import read_guards
from sglang_layered.patching.symbols import last_name

OURS = Path(__file__).resolve().parents[2] / "python" / "sglang_layered"


def private_names(text: str) -> list[str]:
    """`line: owner._name` for each private member of an object of SGLang's, as our code calls those."""
    owners = {name.rpartition(":")[2] for name in read_guards(OURS)["owners"]}
    return [
        f"{node.lineno}: {last_name(node.value)}.{node.attr}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and last_name(node.value).lstrip("_") in owners
    ]


def test_private_names_of_sglang_stay_in_their_room() -> None:
    paths = [path for path in sorted(OURS.rglob("*.py")) if "upstream" not in path.parts]
    files = {str(path.relative_to(OURS)): private_names(path.read_text()) for path in paths}
    assert not {file: names for file, names in files.items() if names}, "put it into upstream/"


@pytest.mark.parametrize("text", ["model_runner._forward_raw(1)", "self._scheduler._engine_paused = True"])
def test_a_private_name_is_seen(text: str) -> None:
    assert len(private_names(text)) == 1


@pytest.mark.parametrize("text", ["self._scheduler.run_batch()", "self._queue._head", "scheduler.__class__"])
def test_what_is_public_or_ours_is_left_alone(text: str) -> None:
    assert private_names(text) == []
