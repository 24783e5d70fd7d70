"""scripts/setup.sh makes an environment for each release that has a lock; nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
RELEASES = {"0.5.17": ("requirements.lock", ".venv"), "0.5.23": ("requirements-0.5.23.lock", ".venv-0.5.23")}
# Stands for Python: it makes an environment of itself, and tells all else that it is asked.
PYTHON = """#!/bin/bash
[ "$1" != -c ] || exit 0
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/sglang-layered"
else
  echo "ran: ${0##*/} $*"
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as the script looks at."""
    for path in ("scripts/setup.sh", "pyproject.toml", *(lock for lock, _ in RELEASES.values())):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / path, tmp_path / path)
    for release in RELEASES:
        (tmp_path / "patches" / release).mkdir(parents=True)
        shutil.copy(REPO / "patches" / release / "manifest.json", tmp_path / "patches" / release)
    for name, text in {"python3.11": PYTHON, "df": "#!/bin/sh\necho a\necho 'a b c 99999999'\n"}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def setup(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", "HOME": str(checkout)}
    command = ["bash", str(checkout / "scripts" / "setup.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_has_an_environment_of_its_own(checkout: Path, release: str) -> None:
    lock, folder = RELEASES[release]
    assert f"\nsglang=={release}\n" in (REPO / lock).read_text()
    args = () if release == "0.5.17" else ("--sglang", release)
    done = setup(checkout, *args)
    ran = [line.removeprefix("ran: ") for line in done.stdout.splitlines() if line.startswith("ran: ")]
    assert done.returncode == 0, done.stderr
    assert ran[0].startswith("python -m pip install --no-deps ") and ran[0].endswith(f" -r {lock}")
    assert ran[2::2] == ["sglang-layered patch apply", "sglang-layered patch verify"]
    assert {path.name for path in checkout.glob(".venv*")} == {folder}
    assert "pip install" not in setup(checkout, *args).stdout, "nothing has changed since"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--sglang", "0.5.22"), "there is no requirements-0.5.22.lock; --sglang takes 0.5.17 or 0.5.23"),
        (("--sglang",), "--sglang needs a release"),
        (("--packages",), "--packages is not known"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_is_made(
    checkout: Path, args: tuple[str], says: str
) -> None:
    done = setup(checkout, *args)
    assert done.returncode == 1 and says in done.stderr
    assert not list(checkout.glob(".venv*"))


@pytest.mark.parametrize("lock", [lock for lock, _ in RELEASES.values()])
def test_every_line_of_a_lock_is_a_name_and_a_version(lock: str) -> None:
    lines = [line for line in (REPO / lock).read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if line.count("==") != 1 or set(line) & set(" ;@[")]
