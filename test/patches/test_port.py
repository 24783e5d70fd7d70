"""Drift: every symbol of SGLang's that we use is as it was; and what `patch port` says of another SGLang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_layered.cli.patch import patch
from sglang_layered.errors import PatchError
from sglang_layered.patching import Site
from sglang_layered.patching.port import FILE, OURS, port, read_symbols, write_symbols
from sglang_layered.patching.symbols import OWNERS, Release, uses

REMEDY = "read what changed, then run `sglang-layered patch port --site PRISTINE --keep`"
REPO = Path(__file__).resolve().parents[2]
PATCHES = ["--patches", str(REPO / "patches")]


@pytest.fixture(scope="module")
def installed(real_site: Site) -> Release:
    return Release(real_site.package)


def test_every_symbol_that_we_use_is_as_it_was(installed: Release, real_site: Site) -> None:
    known = read_symbols(REPO / "patches" / real_site.version)
    changed = [
        f"{use.place} uses {use.symbol}"
        for use in uses(OURS)
        if installed.fingerprint(use.symbol) != known.get(use.symbol)
    ]
    assert not changed, f"{changed}: {REMEDY}"
    assert set(known) == {use.symbol for use in uses(OURS)}, f"symbols that nothing uses any more: {REMEDY}"


@pytest.mark.parametrize("owner", sorted(set(OWNERS.values())))
def test_the_classes_of_what_we_call_by_name_are_there(installed: Release, owner: str) -> None:
    assert installed.fingerprint(owner) is not None


OLD = {
    "srt/a.py": "from sglang.srt.base import Base\n"
    "class Scheduler(Base):\n    def __init__(self):\n        self.queue = []\n"
    "    def run(self, batch):\n        '''Old words.'''\n        return batch\n"
    "    def step(self, batch):\n        return 1\n    def lost(self):\n        return 2\n",
    "srt/base.py": "class Base:\n    def above(self):\n        return 1\n",
    "srt/tools/__init__.py": "from .inner import *\n",
    "srt/tools/inner.py": "def tool():\n    return 1\ndef other():\n    return 1\n",
}
NEW = OLD | {
    "srt/a.py": "from sglang.srt.base import Base\nimport x\n"
    "class Scheduler(Base):\n    def __init__(self):\n        self.queue = []\n"
    "    def run(self, batch):\n        '''New words.'''\n        x.layered_seams\n        # a comment\n"
    "        if layered_seams.on(self):\n            return None\n        return batch\n"
    "    def step(self, batch, more):\n        return 1\n",
    "srt/base.py": "class Base:\n    def above(self):\n        return 3\n",
    "srt/tools/inner.py": "def tool():\n    return 1\n",
    "srt/other.py": "def other():\n    return 1\n",
}
OURS_TEXT = """
from sglang.srt.tools import other, tool

def ours(scheduler, holder):
    scheduler.run(1)
    scheduler.step(1)
    scheduler.lost()
    scheduler.above()
    holder._scheduler.queue
"""


def unpacked(folder: Path, files: dict[str, str], version: str) -> Site:
    for name, text in (files | {"version.py": f'__version__ = "{version}"\n', "__init__.py": ""}).items():
        (folder / "sglang" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sglang" / name).write_text(text)
    return Site(folder / "sglang", version)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Site, Site, Path]:
    """A release, its successor and code of ours that uses both."""
    monkeypatch.setitem(OWNERS, "scheduler", "srt/a.py:Scheduler")
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "loop.py").write_text(OURS_TEXT)
    new = NEW | {"srt/a.py": NEW["srt/a.py"].replace("        x.layered_seams\n", "")}
    return unpacked(tmp_path / "old", OLD, "1"), unpacked(tmp_path / "new", new, "2"), ours


def test_each_kind_of_change_is_told_with_our_places(
    toys: tuple[Site, Site, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, ours = toys
    monkeypatch.setattr("sglang_layered.patching.port.set_folder", lambda root, version: tmp_path)
    monkeypatch.setattr("sglang_layered.patching.port.status", lambda site, root: NoPatches())
    write_symbols(old, tmp_path, ours)
    assert port(old, tmp_path, "1", ours).is_same
    report = port(new, tmp_path, "1", ours)
    told = {
        entry.symbol.partition(":")[2]: (entry.change, entry.places, entry.where) for entry in report.symbols
    }
    assert told == {
        "Scheduler.lost": ("gone", ("loop.py:7",), None),
        "other": ("moved", ("loop.py:2",), "srt/other.py"),
        "Scheduler.step": ("signature changed", ("loop.py:6",), None),
        "Scheduler.above": ("body changed", ("loop.py:8",), None),
        "Scheduler.run": ("same", ("loop.py:5",), None),  # our seam, words and comments do not count
        "Scheduler.queue": ("same", ("loop.py:9",), None),
        "tool": ("same", ("loop.py:2",), None),
    }
    assert not report.is_same
    with pytest.raises(PatchError, match=r"has not got what we use:\s+srt/a.py:Scheduler.lost \(loop.py:7\)"):
        write_symbols(new, tmp_path, ours)


class NoPatches:
    patches = ()


def test_the_command_prints_and_its_exit_status_says_whether_all_is_the_same(
    tmp_path: Path, real_site: Site
) -> None:
    run = CliRunner().invoke
    same = run(patch, [*PATCHES, "port", "--site", str(real_site.package.parent), "--json"])
    assert {entry["change"] for entry in json.loads(same.output)["symbols"]} == {"same"}
    assert same.exit_code == 0
    other = unpacked(tmp_path, {}, "0.0.1")
    done = run(patch, [*PATCHES, "port", "--site", str(other.package.parent)])
    assert done.exit_code == 1
    assert "SGLang 0.0.1 against" in done.output and "gone" in done.output
    assert "does not fit" in done.output


def test_symbols_that_cannot_be_read_are_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=f"{FILE} cannot be read"):
        read_symbols(tmp_path)
