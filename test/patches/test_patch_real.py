"""The real patch set on the real files of the installed SGLang, copied and made pristine."""

import shutil
import subprocess
import sys

import pytest

from patch_maintenance import recorded_sha256, refresh
from sglang_layered.errors import PatchError
from sglang_layered.patching import apply, revert, status, verify
from sglang_layered.patching.patch_set import default_root
from sglang_layered.patching.site import sha256


def read_all(package, manifest):
    return {path: (package / path).read_bytes() for path in manifest.files}


def test_the_manifest_pins_what_the_installer_recorded(sglang_copy, real_set):
    for path, hashes in real_set.manifest.files.items():
        assert hashes.before == recorded_sha256(sglang_copy.package, path)


def test_apply_verify_revert_on_the_real_files(sglang_copy, real_set):
    pristine = read_all(sglang_copy.package, real_set.manifest)
    with pytest.raises(PatchError, match="not patched"):
        verify(sglang_copy)
    apply(sglang_copy)
    verify(sglang_copy)
    patched = read_all(sglang_copy.package, real_set.manifest)
    for path, hashes in real_set.manifest.files.items():
        assert sha256(patched[path]) == hashes.after
        compile(patched[path], path, "exec", dont_inherit=True)
    revert(sglang_copy)
    assert read_all(sglang_copy.package, real_set.manifest) == pristine


def test_git_applies_the_series_to_the_same_bytes(sglang_copy, real_set, tmp_path):
    shutil.copytree(sglang_copy.package, tmp_path / "git" / "sglang")
    for patch in real_set.patches:
        command = ["git", "apply", "--unidiff-zero", "-p1", str(real_set.folder / patch.name)]
        subprocess.run(command, cwd=tmp_path / "git", check=True, timeout=60)
    apply(sglang_copy)
    by_git = read_all(tmp_path / "git" / "sglang", real_set.manifest)
    assert by_git == read_all(sglang_copy.package, real_set.manifest)


def test_refresh_gives_the_manifest_in_the_repository(sglang_copy, real_set, tmp_path):
    shutil.copytree(real_set.folder, tmp_path / "patches" / sglang_copy.version)
    (tmp_path / "patches" / sglang_copy.version / "manifest.json").unlink()
    written = refresh(sglang_copy, tmp_path / "patches")
    assert written.read_text() == (real_set.folder / "manifest.json").read_text()


def test_refresh_refuses_files_that_the_installer_did_not_record(sglang_copy):
    path = sglang_copy.package / "srt/managers/scheduler.py"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(PatchError, match=r"srt/managers/scheduler\.py is not pristine"):
        refresh(sglang_copy, default_root())


def test_every_real_anchor_is_found_once_in_a_shifted_file(sglang_copy, real_set):
    for path in real_set.manifest.files:
        file = sglang_copy.package / path
        file.write_bytes(b"# shifted by one line\n" + file.read_bytes())
    for entry in status(sglang_copy).patches:
        assert entry.text.startswith("unknown: ")
        assert "would fit at line " in entry.text


def test_the_tool_imports_neither_sglang_nor_torch(sglang_copy):
    script = (
        "import sys; from pathlib import Path; from sglang_layered import patching as p;"
        "s = p.locate(site=Path(sys.argv[1])); p.apply(s); p.status(s);"
        "p.verify(s); p.locate();"
        "sys.exit('sglang' in sys.modules or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(sglang_copy.package)]
    assert subprocess.run(command, timeout=60).returncode == 0


def test_the_file_that_the_others_import_from_is_written_first_and_taken_back_last(sglang_copy):
    assert apply(sglang_copy)[0] == "__init__.py"
    assert revert(sglang_copy)[-1] == "__init__.py"


def test_files_patched_by_another_version_of_ours_are_said_to_be(sglang_copy, real_set):
    apply(sglang_copy)
    [checks] = [patch for patch in real_set.patches if b"seams.check_server_args" in patch.diff]
    [loop] = [patch for patch in real_set.patches if b"seams.run_event_loop" in patch.diff]
    path = sglang_copy.package / checks.hunks[-1].path
    path.write_text(path.read_text().replace("layered_seams.check_server_args", "layered_seams.check"))
    for action in (apply, revert, verify):
        with pytest.raises(PatchError, match=r"by another version of sglang-layered.*\n.*\nReinstall it"):
            action(sglang_copy)
    texts = {entry.name: entry.text for entry in status(sglang_copy).patches}
    assert "lines of another version of sglang-layered" in texts[checks.name]
    assert texts[loop.name] == "applied"
