"""The line of a key, whatever way TOML offers to write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_layered_lab.bench.spec_errors import line_of

NESTED = """\
# x = 1
top = 1

[a]  # a
x = 1  # a.x
"quoted.key" = 2  # a.quoted
[a.b]
x = 2  # a.b.x
[c.d.e]
x = 3  # c.d.e.x
"""

MIXED = '''\
[a]
b.c.d = 1  # b.c.d
b.c.e = 2  # b.c.e
in = { x = 1, y = { z = 2 } }  # inline
text = """  # text
x = 5
[a.b]
"""
list = [  # list
    1,
    # a comment

    2,
]
after = 1  # after

[[s]]  # s0
x = 1  # s0.x
[[s]]
x = 2  # s1.x
[[s.t]]
[[s.t]]  # t1
x = 3  # t1.x
[b]
[a.late]
x = 1  # late
'''


@pytest.mark.parametrize(
    ("text", "keys", "mark"),
    [
        (NESTED, ("a",), "a"),
        (NESTED, ("a", "x"), "a.x"),
        (NESTED, ("a", "quoted.key"), "a.quoted"),
        (NESTED, ("a", "b", "x"), "a.b.x"),
        (NESTED, ("c", "d", "e", "x"), "c.d.e.x"),
        (MIXED, ("a", "b", "c", "d"), "b.c.d"),
        (MIXED, ("a", "b", "c", "e"), "b.c.e"),
        (MIXED, ("a", "in", "x"), "inline"),
        (MIXED, ("a", "in", "y", "z"), "inline"),
        (MIXED, ("a", "text"), "text"),
        (MIXED, ("a", "list"), "list"),
        (MIXED, ("a", "list", 1), "list"),
        (MIXED, ("a", "after"), "after"),
        (MIXED, ("s", 0), "s0"),
        (MIXED, ("s", 0, "x"), "s0.x"),
        (MIXED, ("s", 1, "x"), "s1.x"),
        (MIXED, ("s", 1, "t", 1), "t1"),
        (MIXED, ("s", 1, "t", 1, "x"), "t1.x"),
        (MIXED, ("a", "late", "x"), "late"),
        (MIXED, ("a", "b", "c", "gone"), "b.c.d"),  # the table it would be in begins there
        (MIXED, ("s", 1, "t", 1, "gone"), "t1"),
        (NESTED, ("a", "gone", "x"), "a"),
    ],
)
def test_the_marked_line_is_found(text: str, keys: tuple[str | int, ...], mark: str) -> None:
    lines = text.splitlines()
    (wanted,) = (number for number, line in enumerate(lines, start=1) if line.endswith(f"  # {mark}"))
    assert line_of(text, keys) == wanted


def test_a_key_that_is_nowhere_is_on_line_1() -> None:
    assert line_of(MIXED, ("nowhere", "x")) == line_of("", ("x",)) == line_of("x = 1", ()) == 1


def test_windows_line_ends_count_once() -> None:
    assert line_of("a = 1\r\n\r\n[t]\r\nb = '\u2028'\r\nc = 1\r\n", ("t", "c")) == 5


NAMES = st.text("abcxyz_-09", min_size=1, max_size=4)


@given(tables=st.dictionaries(NAMES, st.lists(NAMES, unique=True), min_size=1, max_size=5), data=st.data())
def test_plain_tables_with_gaps(tables: dict[str, list[str]], data: st.DataObject) -> None:
    lines: list[str] = []
    where: dict[tuple[str, ...], int] = {}
    for table, names in tables.items():
        lines += data.draw(st.lists(st.sampled_from(["", "# c = 1", "  "]), max_size=2))
        lines.append(f"[{table}]")
        where[table,] = len(lines)
        for name in names:
            lines.append(f"{name} = 1")
            where[table, name] = len(lines)
    keys = data.draw(st.sampled_from(sorted(where)))
    assert line_of("\n".join(lines), keys) == where[keys]
