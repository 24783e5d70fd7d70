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
CHANGED = read_guards(OURS)["changed"]
EACH = [
    pytest.param(name, words, id=f"{function['name']}:{name}{function.get('release', '')}")
    for function in [*LISTED, *CHANGED]
    for name, words in function.get("each", {}).items()
]


def by_name(function: dict[str, Any]) -> str:
    return str(function["name"])


def listed_calls(function: dict[str, Any], changes: list[dict[str, Any]]) -> Counter[str]:
    """The calls of a listed function, with a release's changes; `x2` behind a name counts."""
    calls = counted(function, [*function["calls"], *function.get("each", {})])
    for change in changes:
        gone = counted(change, change["gone"])
        assert gone <= calls, f"{change['name']} of {change['release']}: {gone - calls} is not listed"
        calls = calls - gone + counted(change, [*change.get("calls", ()), *change.get("each", {})])
    return calls


def counted(function: dict[str, Any], texts: list[str]) -> Counter[str]:
    calls: Counter[str] = Counter()
    for text in texts:
        name, times = re.fullmatch(r"(\S+)(?: x(\d+))?", text).groups()
        assert name not in calls, f"{function['name']}: {name} is listed twice"
        calls[name] = int(times or 1)
    return calls


def difference(
    function: dict[str, Any], package: Path, changes: list[dict[str, Any]] | None = None
) -> list[str]:
    """What the list and the source of a function do not have in common."""
    found = calls_in(package / function["file"], function["name"])
    listed = listed_calls(function, changes or [])
    return [f"new: {name} x{times}" for name, times in sorted((found - listed).items())] + [
        f"gone: {name} x{times}" for name, times in sorted((listed - found).items())
    ]


def changes_of(function: dict[str, Any], release: str) -> list[dict[str, Any]]:
    """What is said of a function in a later release."""
    return [change for change in CHANGED if change["release"] == release and is_of(change, function)]


def is_of(change: dict[str, Any], function: dict[str, Any]) -> bool:
    return (change["file"], change["name"]) == (function["file"], function["name"])


@pytest.mark.parametrize("function", LISTED, ids=by_name)
def test_every_call_of_sglangs_loops_is_listed_and_every_listed_call_is_made(
    function: dict[str, Any], real_site: Site
) -> None:
    assert difference(function, real_site.package, changes_of(function, real_site.version)) == []
    assert function["ours"]


@pytest.mark.parametrize("change", CHANGED, ids=by_name)
def test_a_change_is_of_a_listed_function(change: dict[str, Any]) -> None:
    [function] = [function for function in LISTED if is_of(change, function)]
    listed_calls(function, [change])


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
