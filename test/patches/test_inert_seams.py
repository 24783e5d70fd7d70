"""Guard of 0000: a patched SGLang without a package that has its seams runs as released, and says so once."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sglang_layered
from seam_trees import index_of
from standalone_kernels import write_standalone_kernels

SEAM = "_layered_seams = _find_layered_seams()"
WARNING = "SGLang runs as released: it is patched for sglang-layered, which cannot be used"

REPORT = """
import json, multiprocessing, sglang
seams = sglang._layered_seams
def tell():
    answers = {name: call(1, 2) for name, call in vars(seams).items() if name != "server_args_fields"}
    print(json.dumps({"answers": answers, "class": seams.server_args_fields(int) is int}), flush=True)
if __name__ == "__main__":
    tell()
    child = multiprocessing.get_context("spawn").Process(target=tell)
    child.start()
    child.join()
"""

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sglang_layered", "sglang_layered_kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Hidden())
"""

IMPORT_ALL = """
import dataclasses, json
import sglang.srt.managers.scheduler, sglang.srt.model_executor.model_runner
from sglang.srt.server_args import ServerArgs
print(json.dumps([field.name for field in dataclasses.fields(ServerArgs)]))
"""


def names_of_the_block(seam_file):
    block = seam_file("__init__.py").find("_find_layered_seams")
    names = next(node.value for node in block.body if isinstance(node, ast.Assign))
    return set(eval(ast.unparse(names)))


def test_names_are_those_that_the_patches_call_and_that_our_seams_define(seam_file, real_set):
    inserted = b"\n".join(patch.diff for patch in real_set.patches).decode()
    called = set(re.findall(r"\b_?layered_seams\.(\w+)\(", inserted))
    called |= set(re.findall(r"@layered_seams\.(\w+)", inserted))
    tree = ast.parse(Path(sglang_layered.__file__).with_name("seams.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    # Other releases' patches decorate SGLang's classes; what only that needs no inserted line calls.
    classes = Path(sglang_layered.__file__).with_name("class_seams.py").read_text()
    defined -= set(re.findall(r"\bseams\.(\w+)\(", classes)) - called
    assert names_of_the_block(seam_file) == called == defined


def test_seams_are_found_before_the_first_import_of_sglang(seam_file):
    body = seam_file("__init__.py").patched.body
    earlier = [node.module or "" for node in body[: index_of(body, SEAM)] if isinstance(node, ast.ImportFrom)]
    assert not [name for name in earlier if name.startswith("sglang")]


def test_nothing_else_changes(seam_file):
    assert seam_file("__init__.py").adds_only_seams


@pytest.fixture
def bare_sglang(seam_file, tmp_path):
    """A package `sglang` that holds nothing but the block that finds the seams."""
    body = seam_file("__init__.py").patched.body
    block = body[index_of(body, SEAM) - 1 : index_of(body, SEAM) + 1]
    package = tmp_path / "site" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("\n".join(map(ast.unparse, block)) + "\n")
    return package.parent


def run(script, site, tmp_path):
    """Isolated Python, so that only `site` can offer a package of ours; what it spawns inherits that."""
    path = tmp_path / "script.py"
    path.write_text(script)
    start = f"import sys, runpy; sys.path[:0] = [{str(site)!r}]; "
    start += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    command = [sys.executable, "-S", "-I", "-c", start]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def leave_nothing(site):
    pass


def leave_a_folder(site):
    """What an uninstall leaves where somebody put a file of theirs into the package's folder."""
    (site / "sglang_layered").mkdir()


def leave_another_version(site):
    package = site / "sglang_layered"
    package.mkdir()
    (package / "__init__.py").touch()
    seams = Path(sglang_layered.__file__).with_name("seams.py").read_text()
    (package / "seams.py").write_text(seams.replace("def has_step", "def carries_step"))


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        (leave_nothing, "No module named 'sglang_layered'"),
        (leave_a_folder, "cannot import name 'seams'"),
        (leave_another_version, "its installed version lacks has_step"),
    ],
)
def test_every_seam_is_inert_and_it_is_said_once(bare_sglang, tmp_path, leave, reason):
    leave(bare_sglang)
    done = run(REPORT, bare_sglang, tmp_path)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 2  # the process itself and one that it spawned
    for report in reports:
        assert report["class"] is True
        assert set(report["answers"].values()) == {None}
    assert done.stderr.count(WARNING) == 1
    assert reason in done.stderr


def test_with_the_package_sglang_calls_our_functions_and_nothing_is_said(bare_sglang, tmp_path):
    (bare_sglang / "sglang_layered").symlink_to(Path(sglang_layered.__file__).parent)
    script = "import sglang; print(sglang._layered_seams.__name__, hasattr(sglang, '_find_layered_seams'))"
    done = run(script, bare_sglang, tmp_path)
    assert (done.stdout.split()[0], done.stderr) == ("sglang_layered.seams", "")


def test_all_patched_modules_import_without_the_package_and_have_no_flag_of_ours(seam_file, tmp_path):
    write_standalone_kernels(tmp_path)
    script = f"{HIDE}sys.path.insert(0, {str(tmp_path)!r})\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True
    )
    args = next(
        node
        for node in seam_file("srt/server_args.py").pristine.body
        if getattr(node, "name", "") == "ServerArgs"
    )
    fields = [node.target.id for node in args.body if isinstance(node, ast.AnnAssign)]
    assert json.loads(done.stdout.splitlines()[-1]) == fields
    assert done.stderr.count(WARNING) == 1
