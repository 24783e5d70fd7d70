"""`kernels/cpu` as an `sgl_kernel` that needs no package of ours, for SGLang on a CPU without the seams."""

from pathlib import Path

import sglang_layered_kernels.cpu


def write_standalone_kernels(folder: Path) -> None:
    """Write `folder`/sgl_kernel, for PYTHONPATH: without it SGLang as released cannot start on a CPU."""
    package = folder / "sgl_kernel"
    package.mkdir(parents=True)
    source = Path(sglang_layered_kernels.cpu.__file__).parent
    for name in ("__init__.py", "kv_cache.py", "missing.py", "speculative.py"):
        text = (source / name).read_text()
        text = text.replace("from sglang_layered_kernels.cpu.", "from sgl_kernel.")
        text = text.replace(
            "from sglang_layered.errors import CpuKernelError", "CpuKernelError = NotImplementedError"
        )
        assert "import sglang_layered" not in text and "from sglang_layered" not in text
        (package / name).write_text(text)
