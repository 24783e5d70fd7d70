"""What every test folder shares: the tiny models, made once, and the marks."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from sglang_layered.cpu_kernels import cuda_driver_available

REPO = Path(__file__).resolve().parent.parent
MODELS = REPO / "out" / "test-models"

if not cuda_driver_available():
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
settings.register_profile("untimed", deadline=None)  # machines are shared: a slow test is no wrong one
settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other


def tiny_model(arch: str) -> Path:
    from sglang_layered.models import make_model

    return make_model(arch, "tiny", MODELS / arch)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-overlap", action="store_true", help="step the scheduler without SGLang's overlap"
    )


def pytest_configure() -> None:
    """A terminated test run ends its servers as an interrupted one does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_qwen3_moe() -> Path:
    return tiny_model("qwen3_moe")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return tiny_model("llama")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU and this machine has none"))
