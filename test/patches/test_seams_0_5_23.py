"""Guard of 0.5.23's patches: where they stand, what they call, what goes around methods of its classes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sglang_layered
from patch_maintenance import refresh
from seam_trees import RealSet, SeamFile, index_of, patched_trees, pristine_copy, set_of
from sglang_layered import class_seams, seams
from sglang_layered.patching import Site, apply, locate, revert, verify
from sglang_layered.patching.site import at_package

VERSION = "0.5.23"
REPO = Path(__file__).resolve().parents[2]
SITES = (os.environ.get("SGLANG_0_5_23_SITE", ""), REPO / ".venv-0.5.23/lib/python3.11/site-packages")
FLAGS, CHECKS = "srt/arg_groups/fields/schedule.py", "srt/arg_groups/validation_hook.py"
SCHEDULER, RUNNER = "srt/managers/scheduler.py", "srt/model_executor/model_runner.py"
TOKENIZER = "srt/managers/tokenizer_control_mixin.py"
WARNING = "SGLang runs as released: it is patched for sglang-layered, which cannot be used"


@pytest.fixture(scope="module")
def patches() -> RealSet:
    return set_of(VERSION)


@pytest.fixture(scope="module")
def released(patches: RealSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of 0.5.23 that the patches touch, from wherever it is installed."""
    sites = [locate(), *(locate(site=Path(each)) for each in SITES if each and Path(each).is_dir())]
    found = next((site for site in sites if site.version == VERSION), None)
    if found is None:
        pytest.skip(f"SGLang {VERSION} is not installed; scripts/setup.sh --sglang {VERSION} does it")
    return pristine_copy(found, patches, tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def trees(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SeamFile]:
    return patched_trees(released, tmp_path_factory.mktemp("trees"))


@pytest.fixture
def copied(released: Path, tmp_path: Path) -> Site:
    shutil.copytree(released.parent, tmp_path / "site-packages")
    return at_package(tmp_path / "site-packages" / "sglang")


def inserted(patches: RealSet, name: str = "") -> str:
    lines = [
        line for patch in patches.patches for hunk in patch.hunks for line in hunk.lines if name in patch.name
    ]
    return b"\n".join(lines).decode() + "\n"


def test_the_set_is_small(patches: RealSet) -> None:
    assert len(patches.patches) < 9
    assert inserted(patches).count("\n") <= 30


def test_what_is_called_is_there_and_nothing_else(patches: RealSet) -> None:
    called = set(re.findall(r"\blayered_seams\.(\w+)", inserted(patches).replace("_layered", "layered")))
    tree = ast.parse(Path(class_seams.__file__).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {each.asname for node in tree.body if isinstance(node, ast.ImportFrom) for each in node.names}
    assert called == names - {None}


def test_apply_verify_revert_and_git_give_the_same_bytes(
    copied: Site, patches: RealSet, tmp_path: Path
) -> None:
    read = lambda package: {path: (package / path).read_bytes() for path in patches.manifest.files}  # noqa: E731
    pristine = read(copied.package)
    shutil.copytree(copied.package, tmp_path / "git" / "sglang")
    for patch in patches.patches:
        command = ["git", "apply", "--unidiff-zero", "-p1", str(patches.folder / patch.name)]
        subprocess.run(command, cwd=tmp_path / "git", check=True, timeout=60)
    assert apply(copied)[0] == "__init__.py"
    verify(copied)
    assert read(copied.package) == read(tmp_path / "git" / "sglang")
    for path, data in read(copied.package).items():
        compile(data, path, "exec", dont_inherit=True)
    revert(copied)
    assert read(copied.package) == pristine


def test_the_manifest_is_that_of_the_release(copied: Site, patches: RealSet, tmp_path: Path) -> None:
    shutil.copytree(patches.folder, tmp_path / "patches" / VERSION)
    assert refresh(copied, tmp_path / "patches").read_text() == (patches.folder / "manifest.json").read_text()


@pytest.mark.parametrize("path", ["__init__.py", FLAGS, CHECKS, SCHEDULER, RUNNER, TOKENIZER])
def test_nothing_else_changes(trees: Callable[[str], SeamFile], path: str) -> None:
    assert trees(path).adds_only_seams
    assert path == "__init__.py" or trees(path).imports_seams_first()


def test_seams_and_kernels_are_offered_before_anything_needs_them(trees: Callable[[str], SeamFile]) -> None:
    body = trees("__init__.py").patched.body
    at = index_of(body, "_layered_seams.offer_cpu_kernels()")
    assert isinstance(body[at - 1], ast.Try)
    earlier = [node.module for node in body[:at] if isinstance(node, ast.ImportFrom)]
    assert earlier == ["sglang.srt.environ"], "which imports neither torch nor sgl_kernel"


@pytest.mark.parametrize(
    ("path", "name", "seam"),
    [
        (FLAGS, "Schedule", "server_args_fields"),
        (SCHEDULER, "Scheduler", "scheduler_class"),
        (RUNNER, "ModelRunner", "runner_class"),
    ],
)
def test_classes_are_handed_over(trees: Callable[[str], SeamFile], path: str, name: str, seam: str) -> None:
    decorators = trees(path).find(name).decorator_list  # type: ignore[attr-defined]
    assert [ast.unparse(each) for each in decorators] == [f"layered_seams.{seam}"]


def test_arguments_are_checked_whatever_they_are(trees: Callable[[str], SeamFile]) -> None:
    body = trees(CHECKS).find("check_server_args").body  # type: ignore[attr-defined]
    at = index_of(body, "layered_seams.check_server_args(server_args)")
    assert index_of(body, "if cfg.enable_pdmux:") == at + 1
    assert not [part for node in body[:at] for part in ast.walk(node) if isinstance(part, ast.Return)]
    called = ast.unparse(trees(CHECKS).pristine)
    assert "def check_server_args(server_args: Any):" in called


def test_our_loop_is_asked_before_any_of_sglangs(trees: Callable[[str], SeamFile]) -> None:
    body = trees(SCHEDULER).find("dispatch_event_loop").body  # type: ignore[attr-defined]
    assert index_of(body, "if layered_seams.run_event_loop(scheduler):") == 0
    assert [ast.unparse(node) for node in body[0].body] == ["return"]
    assert "role_switch.run_event_loop_supervisor" in ast.unparse(body[1])


def test_kinds_are_kept_apart_before_a_request_is_prepared(trees: Callable[[str], SeamFile]) -> None:
    function = trees(SCHEDULER).find("Scheduler", "_get_new_batch_prefill_raw")
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
    body = next(node.body for node in loops if ast.unparse(node.iter) == "self.waiting_queue")
    at = index_of(body, "if layered_seams.must_run_apart(adder.can_run_list, req):")
    assert isinstance(body[at], ast.If) and isinstance(body[at].body[0], ast.Break)  # type: ignore[attr-defined]
    assert at < index_of(body, "req.init_next_round_input(self.tree_cache)")


def test_a_layered_step_runs_inside_the_forward_context(trees: Callable[[str], SeamFile]) -> None:
    function = trees(RUNNER).find("ModelRunner", "_forward_raw")
    [block] = [node for node in function.body if isinstance(node, ast.With)]  # type: ignore[attr-defined]
    assert ast.unparse(block.items[-1]) == "ctx_mgr"
    assert ast.unparse(block.body[0]).splitlines() == [
        "if layered_seams.has_step(forward_batch):",
        "    return layered_seams.run_step(self, forward_batch)",
    ]


def test_refusals_are_looked_at_when_all_are_there(trees: Callable[[str], SeamFile]) -> None:
    body = trees(TOKENIZER).find("TokenizerControlMixin", "set_internal_state").body  # type: ignore[attr-defined]
    at = index_of(body, "layered_seams.refuse_settings(responses)")
    assert "set_internal_state_communicator(obj)" in ast.unparse(body[at - 1])
    assert at == len(body) - 2 and isinstance(body[-1], ast.Return)


class Stock:
    """As SGLang's Scheduler and ModelRunner, where ours go around."""

    disaggregation_mode = SimpleNamespace(value="null")

    def __init__(self) -> None:
        self.done: list[str] = []

    def handle_generate_request(self, recv_req: Any, *, mm_input_error: str | None = None) -> None:
        self.done.append(f"request of {recv_req.bootstrap_room}, {mm_input_error}")

    def pause_generation(self, recv_req: Any) -> None:
        self.done.append("pause")

    def process_batch_result(self, batch: Any, result: Any) -> None:
        self.done.append(f"results {result} of {batch}")

    def get_internal_state(self, recv_req: Any) -> Any:
        return SimpleNamespace(internal_state={"theirs": 1})

    def set_internal_state(self, recv_req: Any) -> str:
        return "theirs"

    def init_cuda_graphs(self, capture_decode_cuda_graph: bool = True) -> None:
        self.done.append(f"graphs {capture_decode_cuda_graph}")


def attached() -> Any:
    return class_seams.runner_class(class_seams.scheduler_class(type("Own", (Stock,), {})))()


def test_without_a_mode_everything_is_as_released() -> None:
    scheduler, request = attached(), SimpleNamespace(mode="retract", bootstrap_room=3, server_args={"a": 1})
    scheduler.server_args = SimpleNamespace(enable_expert_traffic_metrics=False, prefill_mode="chunked")
    scheduler.handle_generate_request(request, mm_input_error="none")
    scheduler.pause_generation(request)
    scheduler.process_batch_result("batch", result=5)
    scheduler.init_cuda_graphs(capture_decode_cuda_graph=False)
    assert scheduler.done == ["request of None, none", "pause", "results 5 of batch", "graphs False"]
    assert scheduler.get_internal_state(None).internal_state == {"theirs": 1}
    assert scheduler.set_internal_state(request) == "theirs"


def test_ours_go_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = attached()
    note = scheduler.done.append
    scheduler.layered_loop = SimpleNamespace(on_pause=lambda: note("ours"))
    scheduler.layered_observer = SimpleNamespace(
        before_results=lambda batch: note("before"),
        after_results=lambda batch: note("after"),
        state=lambda: {"b": 2},
    )
    for name in ("before_graphs", "after_graphs"):
        monkeypatch.setattr(seams, name, lambda runner, name=name: note(name))
    monkeypatch.setattr(seams, "change_settings", lambda scheduler, request: "ours")
    for mode in ("in_place", "retract"):
        scheduler.pause_generation(SimpleNamespace(mode=mode))
    scheduler.process_batch_result(1, 2)
    scheduler.init_cuda_graphs()
    expected = ["pause", "ours", "pause", "before", "results 2 of 1", "after"]
    assert scheduler.done == [*expected, "before_graphs", "graphs True", "after_graphs"]
    assert scheduler.get_internal_state(None).internal_state == {"theirs": 1, "layered": {"b": 2}}
    assert scheduler.set_internal_state(SimpleNamespace(server_args={"layered_prefill": 0})) == "ours"


@pytest.mark.parametrize("name", [name for name in vars(Stock) if name in dir(Stock) and name[0] != "_"])
def test_a_method_that_is_gone_ends_the_import_with_its_name(name: str) -> None:
    if not callable(getattr(Stock, name)):
        return
    methods = {each: value for each, value in vars(Stock).items() if each != name}
    with pytest.raises(AttributeError, match=name):
        class_seams.runner_class(class_seams.scheduler_class(type("Own", (), methods)))


REPORT = """
import multiprocessing, sglang
seams = sglang._layered_seams
def tell():
    its = vars(seams).get("__name__")
    print(its or [seams.anything(1, 2), seams.offer_cpu_kernels(), seams.decorator(int)], flush=True)
if __name__ == "__main__":
    tell()
    child = multiprocessing.get_context("spawn").Process(target=tell)
    child.start()
    child.join()
"""


@pytest.mark.parametrize("leave", ["nothing", "an older version", "the package"])
def test_without_our_package_every_seam_is_inert_and_it_is_said_once(
    patches: RealSet, tmp_path: Path, leave: str
) -> None:
    site = tmp_path / "site"
    (site / "sglang").mkdir(parents=True)
    (site / "sglang" / "__init__.py").write_text("import sys as _sys\n" + inserted(patches, "0000"))
    if leave == "an older version":
        (site / "sglang_layered").mkdir()
        (site / "sglang_layered" / "__init__.py").touch()
    elif leave == "the package":
        (site / "sglang_layered").symlink_to(Path(sglang_layered.__file__).parent)
    script = tmp_path / "script.py"
    script.write_text(REPORT)
    start = f"import sys, runpy; sys.path[:0] = [{str(site)!r}]; "
    start += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", start], capture_output=True, text=True, timeout=60, check=True
    )
    if leave == "the package":
        assert (done.stdout.split(), done.stderr) == (["sglang_layered.class_seams"] * 2, "")
    else:
        assert done.stdout.splitlines() == ["[None, None, <class 'int'>]"] * 2
        assert done.stderr.count(WARNING) == 1
        assert ("class_seams" in done.stderr) == (leave == "an older version")
