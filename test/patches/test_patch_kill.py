"""A run killed at any moment leaves only whole files, and the next apply or revert repairs the rest."""

import os
import signal
import subprocess
import sys

import pytest

from sglang_layered.patching import apply, revert
from sglang_layered.patching.site import TEMP_PREFIX
from toy_sglang import TOY_PATCHED, TOY_PRISTINE

ACTIONS = {"apply": apply, "revert": revert}
NUM_FILES = len(TOY_PRISTINE)
NUM_SYSTEM_CALLS = 3 * NUM_FILES  # fsync of the file, rename, fsync of its folder

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from sglang_layered import patching

real, left = os.replace, int(sys.argv[3])
def replace(*args):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*args)
os.replace = replace
getattr(patching, sys.argv[4])(patching.locate(site=Path(sys.argv[1])), Path(sys.argv[2]))
"""


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def die_at(monkeypatch, fatal_call, *, after):
    """Raise Killed at one of the calls that change the disk, before or after it took effect."""
    calls = 0

    def wrap(real):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == fatal_call and not after:
                raise Killed
            real(*args)
            if calls == fatal_call:
                raise Killed

        return call

    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(os, "fsync", wrap(os.fsync))


def assert_repaired(toy, repair, files_before):
    texts = toy.texts()
    assert all(text in (TOY_PRISTINE[path], TOY_PATCHED[path]) for path, text in texts.items())
    ACTIONS[repair](toy.site, toy.root)
    assert toy.texts() == (TOY_PATCHED if repair == "apply" else TOY_PRISTINE)
    assert toy.all_files() == files_before


@pytest.mark.parametrize("repair", ACTIONS)
@pytest.mark.parametrize("killed", ACTIONS)
@pytest.mark.parametrize("after", [False, True], ids=["before-call", "after-call"])
@pytest.mark.parametrize("fatal_call", range(1, NUM_SYSTEM_CALLS + 1))
def test_a_run_stopped_at_any_call_is_repaired(toy, fatal_call, after, killed, repair):
    files_before = toy.all_files()
    if killed == "revert":
        apply(toy.site, toy.root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        die_at(monkeypatch, fatal_call, after=after)
        with pytest.raises(Killed):
            ACTIONS[killed](toy.site, toy.root)
    assert_repaired(toy, repair, files_before)


def test_the_calls_are_all_covered(toy, monkeypatch):
    die_at(monkeypatch, NUM_SYSTEM_CALLS + 1, after=False)
    apply(toy.site, toy.root)


@pytest.mark.parametrize("repair", ACTIONS)
@pytest.mark.parametrize("num_renames", range(NUM_FILES))
def test_a_process_killed_by_sigkill_is_repaired(toy, num_renames, repair):
    files_before = toy.all_files()
    command = [sys.executable, "-c", KILLED_RUN, toy.site_packages, toy.root, str(num_renames), "apply"]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    patched = [path for path, text in toy.texts().items() if text == TOY_PATCHED[path]]
    assert len(patched) == num_renames
    assert len([path for path in toy.all_files() if TEMP_PREFIX in path]) == 1
    assert_repaired(toy, repair, files_before)
