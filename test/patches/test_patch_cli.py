"""The command line: where it looks, what it prints, how it exits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_layered.cli.patch import patch
from sglang_layered.errors import PatchError
from sglang_layered.patching import apply, locate
from toy_sglang import TOY_PATCHED, TOY_PRISTINE, TOY_SERIES


@pytest.fixture
def invoke(toy):
    def call(command, *options):
        where = options if "--python" in options else ("--site", toy.site_packages, *options)
        return CliRunner().invoke(patch, ["--patches", str(toy.root), command, *map(str, where)])

    return call


def test_apply_verify_revert_exit_zero_with_one_line(toy, invoke):
    for command, words in (
        ("apply", "patched 3 files"),
        ("apply", "already patched"),
        ("verify", "3 files verified by hash"),
        ("revert", "reverted 3 files"),
        ("revert", "already pristine"),
    ):
        result = invoke(command)
        assert result.exit_code == 0
        assert result.output == f"SGLang 1.0.0 in {toy.package}: {result.output.split(': ', 1)[1]}"
        assert result.output.rstrip().endswith(words)


def test_verify_of_a_pristine_site_exits_one(invoke):
    result = invoke("verify")
    assert result.exit_code == 1
    assert isinstance(result.exception, PatchError)


def test_the_console_command_prints_the_error_in_one_line_and_exits_one(toy):
    toy.set_version("9.9.9")
    script = "from sglang_layered.cli.main import main; main()"
    command = [sys.executable, "-c", script, "patch", "verify", "--site", str(toy.site_packages)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("sglang-layered: no patch set for SGLang 9.9.9; supported: ")
    assert len(result.stderr.splitlines()) == 1


def test_status_before_and_after(toy, invoke):
    lines = invoke("status").output.splitlines()
    assert [line.split() for line in lines[1:]] == [[name, "fits"] for name in TOY_SERIES]
    apply(toy.site, toy.root)
    assert invoke("status").output.count("applied") == 3


def test_status_on_another_version_judges_by_anchors_and_writes_nothing(toy, invoke):
    toy.set_version("2.0.0")
    (toy.package / "srt/a.py").write_text("import zero\n" + TOY_PRISTINE["srt/a.py"])
    (toy.package / "srt/b.py").write_text(TOY_PRISTINE["srt/b.py"].replace("self.lid = 0", "self.lid = 1"))
    texts, files = toy.texts(), toy.all_files()
    result = invoke("status")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()[2:]}
    assert lines["0001-init.patch"].endswith("fits")
    assert lines["0002-run.patch"].endswith("would fit at line 3, 7")
    assert "anchor in Box.open not found" in lines["0003-both.patch"]
    assert (toy.texts(), toy.all_files()) == (texts, files)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def run(:\n", "does not parse"),
        (TOY_PRISTINE["srt/a.py"].replace("run", "walk"), "anchor in run not found"),
        (TOY_PRISTINE["srt/a.py"] * 2, "found 2 times"),
        (None, "srt/a.py is missing"),
    ],
)
def test_status_says_why_a_patch_does_not_fit(toy, invoke, text, words):
    (toy.package / "srt/a.py").unlink()
    if text is not None:
        (toy.package / "srt/a.py").write_text(text)
    result = invoke("status")
    assert result.exit_code == 0
    assert words in next(line for line in result.output.splitlines() if line.startswith("0002"))


def test_the_sglang_folder_itself_is_a_site(toy):
    assert locate(site=toy.package) == locate(site=toy.site_packages) == toy.site


def test_python_option_works_on_the_sglang_of_that_interpreter(toy, invoke, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{toy.site_packages}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "elsewhere" / "sglang").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sglang" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke("apply", "--python", python).exit_code == 0
    assert toy.texts() == TOY_PATCHED


def test_the_default_is_this_interpreter():
    assert locate() == locate(python=Path(sys.executable))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"site": Path("/nowhere")}, "/nowhere holds no sglang package"),
        ({"python": Path("/nowhere/python")}, "/nowhere/python cannot be asked"),
        ({"python": Path("/bin/true")}, "sglang is not installed in /bin/true"),
        ({"python": Path("/bin/true"), "site": Path("/")}, "not both"),
    ],
)
def test_a_place_without_sglang_is_refused(options, complaint):
    with pytest.raises(PatchError, match=complaint):
        locate(**options)


def test_the_version_is_that_of_the_file_which_travels_with_the_package(toy):
    info = toy.site_packages / "sglang-3.2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: sglang\nVersion: 3.2.1\n")
    assert toy.site.version == "1.0.0"
    (toy.package / "_version.py").write_text('__version__: str\n__version__ = "3.2.2"\n')
    assert toy.site.version == "3.2.2"
    os.remove(toy.package / "_version.py")
    assert toy.site.version == "unknown"
