"""Drift: every symbol of SGLang's that we use is as it was; and what `patch port` says of another SGLang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from patch_maintenance import write_symbols
from sglang_layered.cli.patch import patch
from sglang_layered.errors import PatchError
from sglang_layered.patching import Site
from sglang_layered.patching.port import (
    FILE,
    OURS,
    all_uses,
    followed,
    port,
    read_guards,
    read_symbols,
    uses,
)
from sglang_layered.patching.symbols import Release

REMEDY = "read what changed, then run `scripts/patch-set refresh --symbols --site SITE`"
REPO = Path(__file__).resolve().parents[2]
PATCHES = ["--patches", str(REPO / "patches")]


@pytest.fixture(scope="module")
def installed(real_site: Site) -> Release:
    return Release(real_site.package)


def test_every_symbol_that_we_use_is_as_it_was(installed: Release, real_site: Site) -> None:
    folder = REPO / "patches" / real_site.version
    known, found = read_symbols(folder), all_uses(folder)
    changed = [
        f"{symbol}, for {', '.join(use.place for use in each)}"
        for symbol, each in found.items()
        if installed.fingerprint(symbol) != known.get(symbol)
    ]
    assert not changed, "\n".join([REMEDY, *changed])
    assert not known.keys() - found.keys(), f"symbols that nothing uses any more: {REMEDY}"


@pytest.mark.parametrize(
    "symbol",
    [
        "srt/managers/scheduler.py:Scheduler._apply_war_barrier",  # an attribute of an object called by name
        "srt/model_executor/forward_batch_info.py:ForwardBatch.mrope_positions",  # of a parameter
        "srt/model_executor/forward_batch_info.py:ForwardMode.MIXED",  # of what is imported
        "srt/layers/moe/fused_moe_triton/layer.py:FusedMoE.moe_ep_rank",  # of an object of one file
        "srt/models/deepseek_v2.py:DeepseekV2AttentionMLA.forward",  # a body that we follow
        "srt/managers/tp_worker.py:TpModelWorker.forward_batch_generation",  # one whose calls are listed
        "srt/managers/scheduler_components/output_streamer.py:_GenerationStreamAccumulator.accept",  # a seam
    ],
)
def test_each_way_to_depend_on_sglang_is_guarded(symbol: str) -> None:
    assert symbol in read_symbols(REPO / "patches" / "0.5.17")


def test_no_flag_of_ours_is_taken_for_one_of_sglangs() -> None:
    assert not [
        use for use in uses(OURS) if use.symbol.endswith(("ServerArgs.prefill_mode", ".layered_loop"))
    ]


@pytest.mark.parametrize("toml", ['"other.py:gone"', '"loop.py:gone"'])
def test_a_guard_that_names_no_function_of_ours_is_refused(tmp_path: Path, toml: str) -> None:
    (tmp_path / "upstream").mkdir()
    (tmp_path / "loop.py").write_text("def here():\n    pass\n")
    (tmp_path / "upstream" / "guards.toml").write_text(
        f'[[follows]]\nsymbols = ["srt/a.py:A.b"]\nours = [{toml}]\nwhy = "It is copied."\n'
    )
    with pytest.raises(PatchError, match="is not there; name what does its work now"):
        list(followed(tmp_path))


@pytest.mark.parametrize("owner", sorted(set(read_guards(OURS)["owners"].values())))
def test_the_classes_of_what_we_call_by_name_are_there(installed: Release, owner: str) -> None:
    assert installed.fingerprint(owner) is not None


OLD = {
    "srt/a.py": "from sglang.srt.base import Base\n"
    "class Entry:\n    def take(self):\n        return 1\n"
    "class Scheduler(Base):\n    def __init__(self):\n        self.queue = []\n"
    "    def run(self, batch):\n        '''Old words.'''\n        return batch\n"
    "    def step(self, batch):\n        return 1\n    def lost(self):\n        return 2\n",
    "srt/base.py": "class Base:\n    def above(self):\n        return 1\n",
    "srt/tools/__init__.py": "from .inner import *\n",
    "srt/tools/inner.py": "def tool():\n    return 1\ndef other():\n    return 1\n",
}
NEW = OLD | {
    "srt/a.py": "from sglang.srt.base import Base\nimport x\nclass Entry:\n    num_rows: int = 1\n"
    "class Scheduler(Base):\n    def __init__(self):\n        self.queue = []\n"
    "    def run(self, batch):\n        '''New words.'''\n        x.layered_seams\n        # a comment\n"
    "        if layered_seams.on(self):\n            return None\n        return batch\n"
    "    def step(self, batch, more):\n        return 1\n",
    "srt/base.py": "class Base:\n    def above(self):\n        return 3\n",
    "srt/tools/inner.py": "def tool():\n    return 1\n",
    "srt/other.py": "def other():\n    return 1\nclass Taker:\n    def take(self):\n        return 1\n",
}
OURS_TEXT = """
from sglang.srt.a import Entry
from sglang.srt.tools import other, tool

def ours(scheduler, holder):
    scheduler.run(1)
    scheduler.step(1)
    scheduler.lost()
    scheduler.above()
    holder._scheduler.queue

def follower(entry: Entry | None):
    return entry.take()
"""
GUARDS = """
[owners]
scheduler = "srt/a.py:Scheduler"

[[follows]]
symbols = ["srt/tools/inner.py:tool", "srt/a.py:Scheduler.lost"]
ours = ["loop.py:follower"]
why = "It is copied."
"""


def unpacked(folder: Path, files: dict[str, str], version: str) -> Site:
    for name, text in (files | {"_version.py": f'__version__ = "{version}"\n', "__init__.py": ""}).items():
        (folder / "sglang" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "sglang" / name).write_text(text)
    return Site(folder / "sglang", version)


@pytest.fixture
def toys(tmp_path: Path) -> tuple[Site, Site, Path]:
    """A release, its successor and code of ours that uses both."""
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "loop.py").write_text(OURS_TEXT)
    (ours / "upstream").mkdir()
    (ours / "upstream" / "guards.toml").write_text(GUARDS)
    new = NEW | {"srt/a.py": NEW["srt/a.py"].replace("        x.layered_seams\n", "")}
    return unpacked(tmp_path / "old", OLD, "1"), unpacked(tmp_path / "new", new, "2"), ours


def test_each_kind_of_change_is_told_with_our_places(
    toys: tuple[Site, Site, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, ours = toys
    monkeypatch.setattr("sglang_layered.patching.port.set_folder", lambda root, version: tmp_path)
    monkeypatch.setattr("sglang_layered.patching.port.status", lambda site, root: NoPatches())
    monkeypatch.setattr("sglang_layered.patching.port.seams", lambda folder: ())
    write_symbols(old, tmp_path, ours)
    assert port(old, tmp_path, "1", ours).is_same
    report = port(new, tmp_path, "1", ours)
    told = {entry.symbol: (entry.change, entry.places, entry.where) for entry in report.symbols}
    assert told == {
        "srt/a.py:Scheduler.lost": ("gone", ("loop.py:8", "loop.py:12"), None),
        "srt/a.py:Entry.take": ("moved", ("loop.py:13",), "srt/other.py"),
        "srt/tools.py:other": ("moved", ("loop.py:3",), "srt/other.py"),
        "srt/a.py:Scheduler.step": ("signature changed", ("loop.py:7",), None),
        "srt/a.py:Entry": ("body changed", ("loop.py:2",), None),
        "srt/a.py:Scheduler.above": ("body changed", ("loop.py:9",), None),
        "srt/a.py:Scheduler.run": ("same", ("loop.py:6",), None),  # our seam, words and comments do not count
        "srt/a.py:Scheduler.queue": ("same", ("loop.py:10",), None),
        "srt/tools.py:tool": ("same", ("loop.py:3",), None),
        "srt/tools/inner.py:tool": ("same", ("loop.py:12",), None),
    }
    assert not report.is_same
    assert next(entry.why for entry in report.symbols if entry.symbol.endswith("lost")) == "It is copied."
    with pytest.raises(PatchError, match=r"has not got what we use:\s+srt/a.py:Entry.take \(loop.py:13\)"):
        write_symbols(new, tmp_path, ours)


class NoPatches:
    patches = ()


def test_the_command_prints_and_its_exit_status_says_whether_all_is_the_same(
    tmp_path: Path, real_site: Site
) -> None:
    run = CliRunner().invoke
    same = run(patch, [*PATCHES, "port", "--site", str(real_site.package.parent), "--json"])
    assert {entry["change"] for entry in json.loads(same.stdout)["symbols"]} <= {"same", "left out"}
    assert same.exit_code == 0
    other = unpacked(tmp_path, {}, "0.0.1")
    done = run(patch, [*PATCHES, "port", "--site", str(other.package.parent)])
    assert done.exit_code == 1
    assert "SGLang 0.0.1 against" in done.output and "gone" in done.output
    assert "does not fit" in done.output


def test_symbols_that_cannot_be_read_are_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=f"{FILE} cannot be read"):
        read_symbols(tmp_path)


def test_of_the_packages_of_releases_one_is_looked_at(tmp_path: Path) -> None:
    for folder, symbol in (("v1", "old"), ("v2", "new"), ("", "both")):
        (tmp_path / "ours" / "upstream" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ours" / "upstream" / folder / "a.py").write_text(f"from sglang.srt.a import {symbol}\n")
    found = {
        package: {use.symbol.partition(":")[2] for use in uses(tmp_path / "ours", package)}
        for package in ("upstream/v1", "upstream/v2", "")
    }
    assert found == {"upstream/v1": {"old", "both"}, "upstream/v2": {"new", "both"}, "": {"both"}}


def test_a_name_that_a_getter_has_in_quotes_is_a_use(tmp_path: Path) -> None:
    (tmp_path / "upstream").mkdir()
    (tmp_path / "upstream" / "guards.toml").write_text('[owners]\n"a.py:attrgetter" = "srt/a.py:Req"\n')
    (tmp_path / "a.py").write_text("from operator import attrgetter\nrow = attrgetter('kv.row', 'rid')\n")
    assert {use.symbol for use in uses(tmp_path)} == {"srt/a.py:Req.kv", "srt/a.py:Req.rid"}
