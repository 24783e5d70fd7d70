"""`lint` finds every way in which a patch set can rot; it needs no SGLang."""

import shutil
import subprocess
import sys

import pytest

import patch_maintenance
from patch_maintenance import lint
from sglang_layered.patching.patch_set import default_root
from toy_sglang import TOY_SERIES

NAMES = list(TOY_SERIES)


def rewrite(toy, old, new, name="0002-run.patch"):
    patch = toy.folder / name
    text = patch.read_text()
    assert old in text
    patch.write_text(text.replace(old, new, 1))


def test_this_repository_and_the_toy_are_sound(toy):
    assert lint(toy.root) == []
    assert lint(default_root()) == []


def test_lint_needs_no_sglang(toy):
    shutil.rmtree(toy.package)
    assert lint(toy.root) == []


def test_a_patch_listed_twice(toy):
    (toy.folder / "series").write_text("\n".join([*NAMES, NAMES[0]]))
    assert lint(toy.root) == ["1.0.0: 0001-init.patch is listed twice in series"]


def test_an_unlisted_patch(toy):
    (toy.folder / "series").write_text("\n".join(NAMES[1:]))
    assert "1.0.0: 0001-init.patch is not listed in series" in lint(toy.root)


def test_a_missing_patch(toy):
    (toy.folder / "0001-init.patch").unlink()
    assert "1.0.0: 0001-init.patch is listed in series and missing" in lint(toy.root)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("@@ -1,0 +2,1 @@\n", "@@ -1,0 +2,1 @@\n import three\n", "announces 1 lines and 0 follow"),
        ("+    ours.last(y)\n", "+    ours.last(y)\n return y\n", "line 7 of the diff is a context line"),
        ("+    ours.last(y)\n", "+    ours.last(y)\n-    return y\n", "line 7 of the diff is a removed line"),
        ("@@ -1,0 +2,1 @@\n+", "@@ -1,1 +2,1 @@\n-import three\n+", "must read @@ -LINE,0 +START,COUNT @@"),
        ("@@ -5,0 +7,1 @@", "@@ -5,0 +7,1 @@ def run(x):", "line 5 of the diff must read @@ -LINE"),
        ("@@ -5,0 +7,1 @@", "@@ -5,0 +6,1 @@", "wrong start line"),
        ("@@ -5,0 +7,1 @@", "@@ -5,0 +7,2 @@", "announces 2 lines and 1 follow"),
        ("--- a/", "diff --git a/x b/x\n--- a/", "the header must hold exactly"),
        ("+++ b/sglang/srt/a.py", "+++ b/sglang/srt/b.py", "must name one file"),
        ("Off-path: nothing.\n", "", "the header lacks Off-path"),
        ("Why: a toy.", "Why:", "the header lacks Why, or nothing stands after it"),
        ("Why: a toy.", "Wherefore: a toy.", "the header lacks Why"),
        ("Why: a toy.", "Who: me.\nWhy: a toy.", "the header must hold exactly"),
        ("test/guard.py", "test/other.py", "guard test test/other.py does not exist"),
        ("import ours", "import theirs", "manifest.json has not the current diff of 0002-run.patch"),
    ],
)
def test_a_bad_patch_is_named_with_its_fault(toy, old, new, complaint):
    rewrite(toy, old, new)
    problems = [problem for problem in lint(toy.root) if complaint in problem]
    assert len(problems) == 1
    assert "0002-run.patch" in problems[0]


@pytest.mark.parametrize("path", ["sglang/../x.py", "sglang//x.py", "other/x.py"])
def test_a_path_outside_the_package_is_refused(toy, path):
    rewrite(toy, "--- a/sglang/srt/a.py\n+++ b/sglang/srt/a.py", f"--- a/{path}\n+++ b/{path}")
    assert any("0002-run.patch" in problem for problem in lint(toy.root))


def test_prose_may_change_without_a_refresh(toy):
    rewrite(toy, "Why: a toy.", "Why: a better reason,\n  on two lines.")
    assert lint(toy.root) == []


def test_a_manifest_of_another_version_or_none(toy):
    manifest = toy.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sglang": "1.0.0"', '"sglang": "1.0.1"'))
    assert len(lint(toy.root)) == 1
    manifest.unlink()
    assert "manifest.json cannot be read" in lint(toy.root)[0]


def test_a_folder_without_patch_sets(tmp_path):
    assert lint(tmp_path) == [f"{tmp_path}: no patch set"]


def test_lint_and_refresh_commands(toy):
    def exit_status(*words):
        command = [sys.executable, patch_maintenance.__file__, "--patches", toy.root, *words]
        return subprocess.run(command, capture_output=True, timeout=60).returncode

    (toy.folder / "manifest.json").unlink()
    assert exit_status("lint") == 1
    assert exit_status("refresh", "--site", toy.site_packages) == 0
    assert exit_status("lint") == 0
