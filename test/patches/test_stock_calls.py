"""SGLang's loops make the calls that upstream/guards.toml lists, with what our loops do about each.

No text of SGLang is kept. A call that a new version gains or loses fails here until its line is written.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sglang_layered.patching import Site
from sglang_layered.patching.port import read_guards
from sglang_layered.refused_flags import FLAGS
from stock_calls import calls_in, find_function, last_names

OURS = Path(__file__).resolve().parents[2] / "python" / "sglang_layered"
LISTED = read_guards(OURS)["function"]
EACH = [
    pytest.param(name, words, id=f"{function['name']}:{name}")
    for function in LISTED
    for name, words in function.get("each", {}).items()
]


def by_name(function: dict[str, Any]) -> str:
    return str(function["name"])


def listed_calls(function: dict[str, Any]) -> Counter[str]:
    """The calls of a listed function; `x2` behind a name counts."""
    calls: Counter[str] = Counter()
    for text in [*function["calls"], *function.get("each", {})]:
        name, times = re.fullmatch(r"(\S+)(?: x(\d+))?", text).groups()
        assert name not in calls, f"{function['name']}: {name} is listed twice"
        calls[name] = int(times or 1)
    return calls


def difference(function: dict[str, Any], package: Path) -> list[str]:
    """What the list and the source of a function do not have in common."""
    found, listed = calls_in(package / function["file"], function["name"]), listed_calls(function)
    return [f"new: {name} x{times}" for name, times in sorted((found - listed).items())] + [
        f"gone: {name} x{times}" for name, times in sorted((listed - found).items())
    ]


@pytest.mark.parametrize("function", LISTED, ids=by_name)
def test_every_call_of_sglangs_loops_is_listed_and_every_listed_call_is_made(
    function: dict[str, Any], real_site: Site
) -> None:
    assert difference(function, real_site.package) == []
    assert function["ours"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("self.step()\n        self.step()\n        self.poll(len(self.queue))", ["new: self.poll x1"]),
        ("self.step()\n        self.step()\n        self.step()", ["new: self.step x1"]),
        ("self.step()", ["gone: self.step x1"]),
        ("self.step()\n        if self.on:\n            self.kv.pool().free([self.step()])",
         ["new: self.kv.pool x1", "new: self.kv.pool().free x1"]),
        ("self.step()\n        layered_seams.here(self)\n        self.step()", []),
    ],
)  # fmt: skip
def test_a_planted_call_and_a_lost_one_are_found(tmp_path: Path, source: str, expected: list[str]) -> None:
    other = "    def other(self):\n        self.away()\n"
    (tmp_path / "loop.py").write_text(f"class Scheduler:\n{other}\n    def loop(self):\n        {source}\n")
    function = {"file": "loop.py", "name": "Scheduler.loop", "calls": ["self.step x2"]}
    assert difference(function, tmp_path) == expected


def test_a_function_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("class Scheduler:\n    pass\n")
    with pytest.raises(LookupError, match=r"loop\.py has no Scheduler\.loop"):
        difference({"file": "loop.py", "name": "Scheduler.loop", "calls": []}, tmp_path)


@pytest.mark.parametrize(("name", "words"), EACH)
def test_what_is_said_of_a_call_is_true(name: str, words: str) -> None:
    called = re.sub(r" x\d+$", "", name).rpartition(".")[2]
    verb, _, rest = words.partition(" ")
    if verb == "same":
        for place in rest.split(", "):
            assert called in last_names(find_ours(place)), f"{place} does not call {called}"
    elif verb == "instead":
        place, _, reason = rest.partition(": ")
        assert find_ours(place) and reason
    elif verb == "refused":
        assert rest in FLAGS
    else:
        assert re.fullmatch(r"unneeded: \S.*", words)


def find_ours(place: str) -> ast.FunctionDef:
    """Our function `file.py:Class.method`."""
    file, _, name = place.partition(":")
    return find_function(OURS / file, name)
