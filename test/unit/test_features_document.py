"""docs/features.md tells the truth: its tests exist, no feature test is left out, refusals are the code's."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_layered.config import LayeredConfig
from sglang_layered.refusals import REFUSALS, Start
from sglang_layered.refused_flags import FLAGS

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "features.md").read_text()
FEATURES = "test/e2e/test_features.py"
OWN_SERVERS = "test/e2e/test_features_own_servers.py"


def rows() -> list[list[str]]:
    """Cells of the table, without its head: feature, layered mode, stock on CPU, how it is tested."""
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def named_tests() -> list[tuple[str, str]]:
    """(file, test id) of every test the table names."""
    found = [name for row in rows() for name in re.findall(r"`([^`]*test_[^`]*)`", row[3])]
    parts = [name.rpartition("::") for name in found]
    return [(file or FEATURES, test) for file, _, test in parts]


@cache
def find_tests(file: str) -> dict[str, list[str]]:
    """Test functions of a file, and of feature tests the ids of their one parameter."""
    functions = [
        node
        for node in ast.parse((REPO / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return {node.name: list(parameters(node)) if file == FEATURES else [] for node in functions}


def parameters(function: ast.FunctionDef) -> Iterator[str]:
    """Ids that pytest gives to `parametrize(name, values)`; values may be those of the data module."""
    data = vars(importlib.import_module("features_requests")) | {"range": range}
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and "parametrize" in ast.unparse(decorator.func):
            yield from map(str, eval(ast.unparse(decorator.args[1]), dict(data)))


@pytest.fixture(scope="module", autouse=True)
def feature_tests_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "test" / "e2e"))
        yield


def test_every_row_is_whole() -> None:
    assert len(rows()) > 40
    for row in rows():
        assert len(row) == 4, row
        assert all(row), row


def test_every_test_that_the_table_names_exists() -> None:
    for file, test in named_tests():
        name, _, rest = test.partition("[")
        assert name in find_tests(file), f"{file} has no {name}"
        if rest:
            assert rest.removesuffix("]") in find_tests(file)[name], test


@pytest.mark.parametrize("of", [FEATURES, OWN_SERVERS])
def test_every_feature_test_stands_in_the_table(of: str) -> None:
    named = {test for file, test in named_tests() if file == of}
    for name, ids in find_tests(of).items():
        wanted = [f"{name}[{parameter}]" for parameter in ids] or [name]
        assert name in named or set(wanted) <= named, sorted(set(wanted) - named)


def test_refused_rows_are_the_refusals_of_the_code() -> None:
    refused = [row[0] for row in rows() if row[1] == "refused"]
    assert all(re.search("`--", feature) for feature in refused)
    assert {flag for feature in refused for flag in re.findall("`(--[a-z0-9-]+)`", feature)} == FLAGS.keys()


def test_rows_without_a_test_lead_to_the_open_gpu_checks() -> None:
    untested = [row for row in rows() if row[1] == "not tested"]
    assert untested
    assert all(row[3] == "[open](../results/h200/TODO.md)" for row in untested)
    todo = (REPO / "results" / "h200" / "TODO.md").read_text()
    for word in ("xgrammar", "seed", "expert distribution", "page size"):
        assert word in todo


class Arguments(SimpleNamespace):
    """ServerArgs with nothing set."""

    def __getattr__(self, name: str) -> Any:
        return None


TEXTS = {text: applies for rows in REFUSALS.values() for text, applies in rows.items()}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_refusal_has_a_reason_and_a_remedy(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    value = {"load_format": "bitsandbytes"}.get(name, 2 if name.endswith("_size") else "on")
    [text] = [text for text in TEXTS if text.startswith(f"--prefill-mode layered does not work with {flag}:")]
    assert TEXTS[text](Start(LayeredConfig("layered"), Arguments(**{name: value})))
    assert not TEXTS[text](Start(LayeredConfig("layered"), Arguments()))
    assert re.fullmatch(r".*: \S.*; \S.*", text)
