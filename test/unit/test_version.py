"""The version: of the tag, of an archive of it, or told. Documents name one. The commit that records name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_layered_lab import provenance

REPO = Path(__file__).resolve().parents[2]
TOLD = "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_SGLANG_LAYERED"


def git(folder: Path, *args: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *args], check=True, capture_output=True)


def version_of(folder: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "setuptools_scm", "--root", str(folder)]
    command += ["--config", str(folder / "pyproject.toml")]
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes"):
        (folder / name).write_bytes((REPO / name).read_bytes())
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def test_the_version_is_that_of_the_tag_of_its_archive_or_told(checkout: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", version_of(checkout))
    git(checkout, "tag", "--annotate", "--message=release", "v1.2.3")
    assert version_of(checkout) == "1.2.3"
    archive = tmp_path / "archive"
    archive.mkdir()
    git(checkout, "archive", "--output", str(tmp_path / "archive.tar"), "HEAD")
    subprocess.run(["tar", "-xf", str(tmp_path / "archive.tar"), "-C", str(archive)], check=True)
    assert version_of(archive) == "1.2.3"
    (archive / ".git_archival.txt").unlink()
    assert version_of(archive) == "0.0"
    assert version_of(archive, **{TOLD: ""}) == "0.0"  # as an image is built whose version nobody named
    assert version_of(archive, **{TOLD: "0.1.0"}) == "0.1.0"
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=second")
    assert version_of(checkout).startswith("1.2.4.dev1+g")


def test_documents_and_images_name_one_version() -> None:
    files = [REPO / "README.md", *(path for path in (REPO / "docker").rglob("*") if path.is_file())]
    texts = [path.read_text() for path in files if path.suffix in (".md", ".yaml", "")]
    named = [version for text in texts for version in re.findall(r"sglang-layered:(\d[\d.]*\d)", text)]
    named += re.findall(r"^version: (\S+)$", (REPO / "CITATION.cff").read_text(), re.MULTILINE)
    named += re.findall(r"\*\*Status\.\*\* Version (\d[\d.]*\d)", (REPO / "README.md").read_text())
    assert len(named) > 10 and len(set(named)) == 1


@pytest.mark.parametrize(
    ("version", "commit"),
    [
        ("0.1.0", None),
        ("0.0", None),
        ("0.1.1.dev3+g8b56f14ee", "8b56f14ee"),
        ("0.1.1.dev3+g8b56f14ee.d20261130", "8b56f14ee-dirty"),
    ],
)
def test_a_wheel_names_its_commit_and_never_that_of_a_checkout_around_it(
    version: str, commit: str | None, checkout: Path, monkeypatch
) -> None:
    module = checkout / ".venv" / "provenance.py"
    module.parent.mkdir()
    module.touch()
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setattr(provenance, "__version__", version)
    assert provenance.current_commit() == commit
    git(checkout, "add", "--force", ".venv")
    git(checkout, "commit", "--quiet", "--message=now it is a part of it")
    git(checkout, "tag", "v9")
    assert re.fullmatch(r"[0-9a-f]{40}", provenance.current_commit() or "")
