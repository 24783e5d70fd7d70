"""The CPU reference kernels against loops over elements, and the finder that offers them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_layered_kernels import cpu

from sglang_layered.errors import CpuKernelError
from sglang_layered.upstream import cpu_kernels
from sglang_layered.upstream.cpu_kernels import CpuKernelFinder, offer_cpu_kernels, other_build_installed


def forget_sgl_kernel() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]:
        del sys.modules[name]


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process as it is on a machine without a CUDA driver, before anything is offered."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "sgl_kernel"}
    forget_sgl_kernel()
    others = [finder for finder in sys.meta_path if not isinstance(finder, CpuKernelFinder)]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.setattr(cpu_kernels, "cuda_driver_available", lambda: False)
    monkeypatch.setattr(cpu_kernels, "other_build_installed", lambda: False)
    yield
    forget_sgl_kernel()
    sys.modules.update(before)


@pytest.fixture
def offered(no_driver: None) -> None:
    offer_cpu_kernels()


def num_finders() -> int:
    return sum(isinstance(finder, CpuKernelFinder) for finder in sys.meta_path)


@st.composite
def request_tables(draw: st.DrawFn):
    """Rows of a table, in any order and without repeats, each with a range of columns."""
    num_rows, pool_len = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rows = draw(st.lists(st.integers(0, num_rows - 1), unique=True, max_size=num_rows))
    ranges = [sorted(draw(st.tuples(*[st.integers(0, pool_len)] * 2))) for _ in rows]
    return num_rows, pool_len, rows, ranges, draw(st.integers(0, 3))


@given(request_tables(), st.sampled_from([torch.int32, torch.int64]))
def test_new_slots_go_to_the_row_and_columns_of_their_request(table, index_dtype) -> None:
    num_rows, pool_len, rows, ranges, num_spare = table
    got = torch.arange(num_rows * pool_len, dtype=torch.int32).view(num_rows, pool_len) - 500
    expected = got.tolist()
    slots = list(range(1000, 1000 + sum(end - start for start, end in ranges) + num_spare))
    remaining = iter(slots)
    for row, (start, end) in zip(rows, ranges, strict=True):
        for column in range(start, end):
            expected[row][column] = next(remaining)
    cpu.assign_req_to_token_pool_cpu(
        torch.tensor(rows, dtype=index_dtype),
        got,
        torch.tensor([start for start, _ in ranges], dtype=index_dtype),
        torch.tensor([end for _, end in ranges], dtype=index_dtype),
        torch.tensor(slots, dtype=torch.int64),
        pool_len,
    )
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("start", "end", "num_slots", "pool_len"),
    [(0, 5, 5, 4), (-1, 2, 5, 4), (3, 1, 5, 4), (0, 3, 2, 4), (0, 1, 1, 3)],
)
def test_ranges_that_do_not_fit_the_table_are_refused(
    start: int, end: int, num_slots: int, pool_len: int
) -> None:
    table = torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(CpuKernelError, match="assign_req_to_token_pool_cpu"):
        cpu.assign_req_to_token_pool_cpu(
            torch.tensor([1]),
            table,
            torch.tensor([start]),
            torch.tensor([end]),
            torch.ones(num_slots),
            pool_len,
        )
    assert not table.any()


@st.composite
def slot_moves(draw: st.DrawFn):
    """Targets without repeats, sources at will, so that a slot can be read and written in one call."""
    num_slots = draw(st.integers(1, 8))
    targets = draw(st.lists(st.integers(0, num_slots - 1), unique=True, max_size=num_slots))
    sources = [draw(st.integers(0, num_slots - 1)) for _ in targets]
    return num_slots, targets, sources


@given(slot_moves(), st.integers(1, 3), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
def test_slots_move_in_every_buffer_as_if_all_were_read_first(moves, num_heads, dtype) -> None:
    num_slots, targets, sources = moves
    shapes = [(num_slots, num_heads, 4), (num_slots, num_heads, 4), (num_slots, 3), (num_slots, 1)]
    buffers = [
        torch.arange(torch.Size(shape).numel()).view(shape).add(i).to(dtype) for i, shape in enumerate(shapes)
    ]
    expected = []
    for buffer in buffers:
        before = buffer.tolist()
        after = buffer.tolist()
        for target, source in zip(targets, sources, strict=True):
            after[target] = before[source]
        expected.append(after)
    cpu.copy_all_layer_kv_cache_cpu(
        torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64),
        torch.tensor([buffer[0].numel() * buffer.itemsize for buffer in buffers]),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(sources, dtype=torch.int64),
    )
    assert [buffer.tolist() for buffer in buffers] == expected


@pytest.mark.parametrize(("targets", "sources"), [([0, 1], [0]), ([-1], [0]), ([0], [-2])])
def test_slots_that_cannot_be_are_refused_before_memory_is_touched(
    targets: list[int], sources: list[int]
) -> None:
    with pytest.raises(CpuKernelError, match="copy_all_layer_kv_cache_cpu"):
        cpu.copy_all_layer_kv_cache_cpu(
            torch.tensor([0], dtype=torch.uint64),
            torch.tensor([4]),
            torch.tensor(targets),
            torch.tensor(sources),
        )


def test_a_missing_cpu_function_imports_and_says_its_name_when_called(offered: None) -> None:
    from sgl_kernel import silu_and_mul_cpu  # type: ignore[attr-defined]
    from sgl_kernel.mamba import of_another_family_cpu

    with pytest.raises(CpuKernelError, match=r"sgl_kernel\.silu_and_mul_cpu .*an encoder"):
        silu_and_mul_cpu(1, key=2)
    with pytest.raises(CpuKernelError, match=r"sgl_kernel\.mamba\.of_another_family_cpu "):
        of_another_family_cpu()


@pytest.mark.parametrize("name", ["silu_and_mul", "flash_mla", "spatial", "allreduce"])
def test_names_of_other_devices_do_not_exist(offered: None, name: str) -> None:
    module = importlib.import_module("sgl_kernel")
    with pytest.raises(AttributeError, match=name):
        getattr(module, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from sgl_kernel import {name}")
    with pytest.raises(ImportError, match=name):
        importlib.import_module(f"sgl_kernel.{name}")
    with pytest.raises(AttributeError, match=name):
        getattr(cpu, name)


def test_the_module_offers_the_implemented_functions(offered: None) -> None:
    module = importlib.import_module("sgl_kernel")
    assert {name: getattr(module, name) for name in cpu.__all__} == {
        name: getattr(cpu, name) for name in cpu.__all__
    }
    assert not hasattr(module, "__version_of_nothing__")
    assert not hasattr(module, "__dunder_cpu")


def test_no_torch_operator_is_registered(offered: None) -> None:
    before = torch._C._dispatch_get_all_op_names()
    importlib.import_module("sgl_kernel")
    importlib.import_module("sgl_kernel.mamba")
    assert torch._C._dispatch_get_all_op_names() == before


def test_offering_twice_adds_one_finder(no_driver: None) -> None:
    offer_cpu_kernels()
    offer_cpu_kernels()
    assert num_finders() == 1 and isinstance(sys.meta_path[0], CpuKernelFinder)


def test_nothing_is_offered_beside_a_driver(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "cuda_driver_available", lambda: True)
    offer_cpu_kernels()
    assert num_finders() == 0


def test_nothing_is_offered_when_the_real_one_is_imported(
    no_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sgl_kernel", object())
    offer_cpu_kernels()
    assert num_finders() == 0


def test_the_driver_is_found_by_loading_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cpu_kernels.ctypes, "CDLL", asked.append)
    cpu_kernels.cuda_driver_available.cache_clear()
    assert cpu_kernels.cuda_driver_available() and cpu_kernels.cuda_driver_available()
    assert asked == ["libcuda.so.1"]

    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(cpu_kernels.ctypes, "CDLL", fail)
    cpu_kernels.cuda_driver_available.cache_clear()
    assert not cpu_kernels.cuda_driver_available()
    cpu_kernels.cuda_driver_available.cache_clear()


@pytest.mark.parametrize(
    ("library", "found"), [("common_ops.abi3.so", True), ("sm90/common_ops.abi3.so", False)]
)
def test_a_build_for_another_device_stays_in_charge(
    no_driver: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str, found: bool
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cpu_kernels, "cuda_driver_available", lambda: False)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, CpuKernelFinder)])
    path = tmp_path / "sgl_kernel" / library
    path.parent.mkdir(parents=True)
    (tmp_path / "sgl_kernel" / "__init__.py").touch()
    path.touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert other_build_installed() is found
    offer_cpu_kernels()
    assert num_finders() == (0 if found else 1)


def test_offering_imports_neither_torch_nor_sglang_and_reaches_import_statements() -> None:
    code = (
        "import sys, sglang_layered.upstream.cpu_kernels as c\n"
        "c.cuda_driver_available = c.other_build_installed = lambda: False\n"
        "c.offer_cpu_kernels()\n"
        "assert not {'torch', 'sglang', 'sgl_kernel', 'numpy'} & set(sys.modules)\n"
        "from sgl_kernel import assign_req_to_token_pool_cpu, anything_cpu\n"
        "from sgl_kernel.mamba import causal_conv1d_update_cpu\n"
        "from sgl_kernel.speculative import reconstruct_indices_from_tree_mask\n"
        "assert 'sglang' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(deadline=None)
@given(st.from_regex(r"[a-z][a-z_0-9]*(_cpu)?", fullmatch=True))
def test_a_name_exists_exactly_when_it_ends_in_cpu(name: str) -> None:
    assert hasattr(cpu, name) == (name.endswith("_cpu") or name in vars(cpu))


def test_every_submodule_that_the_cpu_path_imports_from_is_offered() -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    pattern = re.compile(r"from (sgl_kernel\.\w+) import (?:\([^)]*?|[^\n(]*?)\w+_cpu\b")
    root = Path(spec.submodule_search_locations[0])
    texts = (
        path.read_text(encoding="utf-8")
        for folder in ("srt", "kernels")
        for path in (root / folder).rglob("*.py")
    )
    found = {match for text in texts if "sgl_kernel." in text for match in pattern.findall(text)}
    # The worker of NGRAM imports from this one on every device, under a name without `_cpu`.
    assert found | {cpu_kernels.DRAFTS_SUBMODULE} == cpu_kernels.CPU_SUBMODULES
