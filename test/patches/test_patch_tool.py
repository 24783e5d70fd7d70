"""The patch tool on a toy SGLang: apply, verify, revert, refuse."""

import os
import re
import stat

import pytest

from patch_maintenance import refresh
from sglang_layered.errors import PatchError
from sglang_layered.patching import apply, revert, verify
from sglang_layered.patching.patch_set import load_manifest
from sglang_layered.patching.site import TEMP_PREFIX, sha256
from toy_sglang import TOY_PATCHED, TOY_PRISTINE, TOY_VERSION


def test_apply_writes_the_expected_text_and_revert_takes_it_back(toy):
    before = toy.all_files()
    assert set(apply(toy.site, toy.root)) == set(TOY_PRISTINE)
    assert toy.texts() == TOY_PATCHED
    verify(toy.site, toy.root)
    assert set(revert(toy.site, toy.root)) == set(TOY_PRISTINE)
    assert toy.texts() == TOY_PRISTINE
    assert toy.all_files() == before


def test_apply_and_revert_are_idempotent(toy):
    assert revert(toy.site, toy.root) == []
    apply(toy.site, toy.root)
    inodes = [(toy.package / path).stat().st_ino for path in TOY_PRISTINE]
    assert apply(toy.site, toy.root) == []
    assert [(toy.package / path).stat().st_ino for path in TOY_PRISTINE] == inodes
    assert toy.texts() == TOY_PATCHED


@pytest.mark.parametrize("action", [apply, revert])
@pytest.mark.parametrize("patched_first", [False, True])
def test_a_changed_file_is_refused_with_both_hashes_and_nothing_is_written(toy, action, patched_first):
    if patched_first:
        apply(toy.site, toy.root)
    changed = toy.package / "srt/b.py"
    changed.write_text(changed.read_text() + "# mine\n")
    texts = toy.texts()
    with pytest.raises(PatchError) as caught:
        action(toy.site, toy.root)
    hashes = load_manifest(toy.folder).files["srt/b.py"]
    for part in ("srt/b.py is changed", hashes.before, hashes.after, sha256(changed.read_bytes())):
        assert part in str(caught.value)
    assert "srt/a.py" not in str(caught.value)
    assert toy.texts() == texts


def test_a_missing_file_is_refused_and_nothing_is_written(toy):
    (toy.package / "srt/b.py").unlink()
    with pytest.raises(PatchError, match=r"srt/b\.py is missing"):
        apply(toy.site, toy.root)
    assert (toy.package / "srt/a.py").read_text() == TOY_PRISTINE["srt/a.py"]


@pytest.mark.parametrize("action", [apply, revert, verify])
def test_a_version_without_a_patch_set_is_refused(toy, action):
    toy.set_version("9.9.9")
    with pytest.raises(PatchError, match=re.escape(f"SGLang 9.9.9; supported: {TOY_VERSION}")):
        action(toy.site, toy.root)
    assert toy.texts() == TOY_PRISTINE


def test_a_wrong_result_is_noticed_before_anything_is_written(toy):
    manifest = (toy.folder / "manifest.json").read_text()
    after = load_manifest(toy.folder).files["srt/b.py"].after
    (toy.folder / "manifest.json").write_text(manifest.replace(after, "0" * 64))
    with pytest.raises(PatchError, match=r"srt/b\.py.*its manifest says 0000"):
        apply(toy.site, toy.root)
    assert toy.texts() == TOY_PRISTINE


def test_verify_names_the_pristine_file_and_the_remedy(toy):
    apply(toy.site, toy.root)
    (toy.package / "srt/a.py").write_text(TOY_PRISTINE["srt/a.py"])
    with pytest.raises(PatchError, match=r"not patched \(srt/a\.py\); run `sglang-layered patch apply`"):
        verify(toy.site, toy.root)


def test_verify_refuses_a_version_that_this_package_has_no_set_for(toy):
    with pytest.raises(PatchError, match="no patch set for SGLang"):
        verify(toy.site)


def test_other_names_of_a_hard_linked_file_keep_their_bytes(toy, tmp_path):
    cache = tmp_path / "cache.py"
    os.link(toy.package / "srt/a.py", cache)
    for action in (apply, revert):
        action(toy.site, toy.root)
        assert cache.read_text() == TOY_PRISTINE["srt/a.py"]


def test_the_target_of_a_symlinked_file_keeps_its_bytes(toy, tmp_path):
    cache = (toy.package / "srt/a.py").rename(tmp_path / "cache.py")
    (toy.package / "srt/a.py").symlink_to(cache)
    apply(toy.site, toy.root)
    assert toy.texts() == TOY_PATCHED
    assert cache.read_text() == TOY_PRISTINE["srt/a.py"]


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o775])
def test_mode_bits_are_kept(toy, mode):
    file = toy.package / "srt/a.py"
    file.chmod(mode)
    for action in (apply, revert):
        action(toy.site, toy.root)
        assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize("action", [apply, revert])
def test_leftover_temporary_files_are_removed_beside_the_touched_files_alone(toy, action):
    for folder in ("", "srt/", "srt/deep/"):
        (toy.package / folder).mkdir(exist_ok=True)
        (toy.package / f"{folder}{TEMP_PREFIX}abc").touch()
    action(toy.site, toy.root)
    left = {path for path in toy.all_files() if TEMP_PREFIX in path}
    assert left == {f"srt/deep/{TEMP_PREFIX}abc"}


def test_a_file_that_cannot_be_written_is_named(toy, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("sglang_layered.patching.engine.replace_file", refuse)
    with pytest.raises(PatchError, match=r"Permission denied.*__init__\.py.*run the same command again"):
        apply(toy.site, toy.root)


def test_refresh_refuses_a_patched_site(toy):
    apply(toy.site, toy.root)
    manifest = (toy.folder / "manifest.json").read_text()
    (toy.package / "srt/a.py").write_text("from sglang import _layered_seams\n")
    with pytest.raises(PatchError, match=r"srt/a\.py is not pristine"):
        refresh(toy.site, toy.root)
    assert (toy.folder / "manifest.json").read_text() == manifest
