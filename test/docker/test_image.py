"""The Dockerfile and the scripts that it runs. No image is built here: that needs a container engine."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from docker_files import DOCKER, IMAGE_ROOT, REPO, instructions

HADOLINT = Path(sys.executable).with_name("hadolint")
# Each RUN is one script, run elsewhere: the third by scripts/test.sh itself, the others by tests below.
RUNS = ["docker/install-system.sh", "scripts/setup.sh --packages-only", "scripts/setup.sh"]
RUNS += ["docker/install-on-sglang.sh"]
STUB = (
    '#!/bin/sh\nprintf "%s" "$(basename "$0")" >> "$CALLS"\nprintf " %s" "$@" >> "$CALLS"\necho >> "$CALLS"\n'
)


def run(command: list[str], **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def stubs(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these programs only write down how they were called, into `folder`/calls."""
    programs = folder / "bin"
    programs.mkdir()
    for name in names:
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin", "CALLS": str(folder / "calls")}


def test_hadolint_has_nothing_to_say() -> None:
    done = run([str(HADOLINT), "--no-color", str(DOCKER / "Dockerfile")])
    assert (done.returncode, done.stdout) == (0, "")


def test_every_run_step_is_a_script_that_is_tried_elsewhere() -> None:
    assert instructions("RUN") == RUNS


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [
        line.removeprefix("!")
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    sources = [
        source.rstrip("/")
        for value in instructions("COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    for source in sources:
        assert (REPO / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source
    assert all(any(fnmatch.fnmatch(source, pattern) for source in sources) for pattern in allowed)


def test_bases_are_pinned_and_of_the_cuda_and_the_python_of_the_lock() -> None:
    bases = dict(value.split("=", 1) for value in instructions("ARG") if "=" in value)
    lock = (REPO / "requirements.lock").read_text()
    cuda = bases["BASE"].removeprefix("nvidia/cuda:").split("-")[0]
    assert f"cuda-toolkit=={cuda}\n" in lock
    assert bases["PYTHON"].startswith("python:3.11.")
    assert f"sglang=={bases['SGLANG'].removeprefix('lmsysorg/sglang:v')}\n" in lock
    stages = [value.split(" AS ") for value in instructions("FROM")]
    assert bases["KIND"] == "own" and [names[1:] for names in stages] == [
        ["python"],
        ["own"],
        ["on-sglang"],
        [],
    ]
    assert stages[-1] == ["${KIND}"]


def test_the_image_serves_as_another_user_than_root_and_checks_its_health() -> None:
    assert instructions("USER") == ["10001:10001"]
    assert "useradd --uid 10001 " in (DOCKER / "install-system.sh").read_text()
    [entrypoint], [health] = instructions("ENTRYPOINT"), instructions("HEALTHCHECK")
    scripts = [json.loads(entrypoint)[-1], *json.loads(health.partition("CMD ")[2])]
    for script in scripts:
        assert os.access(REPO / Path(script).relative_to(IMAGE_ROOT), os.X_OK)


@pytest.mark.parametrize(
    ("version", "compiler"),
    [("", []), ("13.0.2", ["cuda-minimal-build-13-0"]), ("13.1.0", ["cuda-minimal-build-13-1"])],
)
def test_system_step_installs_the_compiler_of_the_base(
    version: str, compiler: list[str], tmp_path: Path
) -> None:
    names = ("apt-get", "ldconfig", "useradd", "install", "rm")
    env = stubs(tmp_path, *names) | {"CUDA_VERSION": version}
    done = run(["sh", str(DOCKER / "install-system.sh")], env=env)
    assert done.returncode == 0, done.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    packages = next(call for call in calls if call[:2] == ["apt-get", "install"])
    assert [each for each in packages if each.startswith("cuda")] == compiler
    assert {"g++", "curl", "tini"} <= set(packages)
    assert {call[0] for call in calls} == set(names)


HELD = "torch==2.11.0+cu130\nclick==8.5.1\n"
IMAGES_PYTHON = f"""#!/bin/sh
printf 'python %s\\n' "$*" >> "$CALLS"
case "$*" in
  *freeze*) printf '{HELD}toy @ file:///toy\\n' ;;
  *install*) cat "$6" >> "$CALLS" ;;
esac
"""


def test_the_step_on_sglangs_image_changes_none_of_its_packages_and_patches(tmp_path: Path) -> None:
    env = stubs(tmp_path, "sglang-layered", "useradd", "install") | {"PYTHON": "its-python"}
    (tmp_path / "bin" / "its-python").write_text(IMAGES_PYTHON)
    (tmp_path / "bin" / "its-python").chmod(0o755)
    done = run(["sh", str(DOCKER / "install-on-sglang.sh")], env=env)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    frozen, installed, rest = calls.partition("python -m pip install --no-cache-dir --constraint ")
    assert frozen == "python -m pip freeze --exclude-editable\n" and installed
    _, held, then = rest.partition(HELD)
    assert held and then.splitlines()[:2] == ["sglang-layered patch apply", "sglang-layered patch verify"]
    assert "useradd --uid 10001 " in then and "/home/layered/.cache" in then


@pytest.mark.parametrize("step", ["sglang-layered", "its-python"])
def test_the_step_on_sglangs_image_ends_the_build_where_it_fails(step: str, tmp_path: Path) -> None:
    env = stubs(tmp_path, "sglang-layered", "its-python", "useradd", "install") | {"PYTHON": "its-python"}
    if step == "sglang-layered":
        (tmp_path / "bin" / "its-python").write_text(IMAGES_PYTHON)
    (tmp_path / "bin" / step).write_text("#!/bin/sh\nexit 1\n")
    assert run(["sh", str(DOCKER / "install-on-sglang.sh")], env=env).returncode != 0
    assert "useradd" not in ((tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else "")


@pytest.mark.parametrize(
    ("args", "called"),
    [
        (["--model-path", "m n"], "sglang serve --host 0.0.0.0 --port 31 --model-path m n"),
        ([], "sglang serve --host 0.0.0.0 --port 31 --help"),
        (["router", "--policy", "random"], "sglang-router launch --host 0.0.0.0 --port 31 --policy random"),
        (["sglang-layered", "doctor"], "sglang-layered doctor"),
    ],
)
def test_entrypoint_starts_a_server_a_router_or_a_command(
    args: list[str], called: str, tmp_path: Path
) -> None:
    env = stubs(tmp_path, "sglang", "sglang-router", "sglang-layered") | {"PORT": "31"}
    done = run(["sh", str(DOCKER / "entrypoint.sh"), *args], env=env)
    assert done.returncode == 0, done.stderr
    [line] = (tmp_path / "calls").read_text().splitlines()
    assert " ".join(line.split()) == called


def test_healthcheck_asks_the_port_and_passes_on_the_verdict(tmp_path: Path) -> None:
    env = stubs(tmp_path, "curl") | {"PORT": "31"}
    assert run(["sh", str(DOCKER / "healthcheck.sh")], env=env).returncode == 0
    assert "http://127.0.0.1:31/health" in (tmp_path / "calls").read_text()
    (tmp_path / "bin" / "curl").write_text("#!/bin/sh\nexit 22\n")
    assert run(["sh", str(DOCKER / "healthcheck.sh")], env=env).returncode != 0


CANNED = """#!/bin/sh
case "$*" in
  */generate*) echo '{"output_ids":[1,2]}' ;;
  */metrics*) printf 'sglang:prefill_mode_info{mode="%s",policy="p"} 1.0\\n' "$MODE"
    printf 'sglang:layered_steps_total{kind="layered"} %s\\n' "$STEPS" ;;
  *query*) echo '{"value":[1,"1"]}' ;;
esac
"""


@pytest.mark.parametrize(
    ("mode", "steps", "said"),
    [
        ("layered", "3.0", "smoke: tokens, layered steps, scraped\n"),
        ("layered", "0.0", "smoke: no step was layered\n"),
        ("chunked", "0.0", "smoke: the server is not in layered mode\n"),
    ],
)
def test_the_smoke_says_what_is_wrong(mode: str, steps: str, said: str, tmp_path: Path) -> None:
    env = stubs(tmp_path, "curl") | {"MODE": mode, "STEPS": steps}
    (tmp_path / "bin" / "curl").write_text(CANNED)
    done = run(["sh", str(DOCKER / "smoke.sh"), "http://a", "http://b"], env=env)
    assert (done.returncode, done.stdout + done.stderr) == (0 if "tokens" in said else 1, said)


def wheel(folder: Path) -> None:
    """A package `toy` 1.0 that needs no network to install."""
    metadata = "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
    files = {
        "toy.py": "WORD = 'installed'\n",
        "toy-1.0.dist-info/METADATA": metadata,
        "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder / "toy-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_packages_step_needs_the_lock_alone_and_fills_a_clean_environment(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "setup.sh"
    script.write_bytes((REPO / "scripts" / "setup.sh").read_bytes())
    (tmp_path / "requirements.lock").write_text("# one package\ntoy==1.0\n")
    wheel(tmp_path)
    enough_disk = tmp_path / "df"  # the toy takes none of what the real packages need
    enough_disk.write_text("#!/bin/sh\necho 'Filesystem Blocks Used Available'\necho 'a b c 99999999'\n")
    enough_disk.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHON": os.path.realpath(sys.executable),
    }
    env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for _ in range(2):
        done = run(["bash", str(script), "--packages-only"], env=env)
        assert done.returncode == 0, done.stdout + done.stderr
    told = run([str(tmp_path / ".venv/bin/python"), "-c", "import toy; print(toy.WORD)"], env=env)
    assert told.stdout == "installed\n"
