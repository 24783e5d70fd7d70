"""What every test folder shares: the tiny models, made once, and the marks."""

import signal
import ssl
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_models import tiny_model, use_the_cpu

use_the_cpu()
# Nobody here speaks TLS, and every call of httpx makes a client that reads all certificates: 20 ms of a core.
ssl.create_default_context = cache(ssl.create_default_context)
settings.register_profile("untimed", deadline=None)  # machines are shared: a slow test is no wrong one
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-overlap", action="store_true", help="step the scheduler without SGLang's overlap"
    )
    parser.addoption("--long", action="store_true", help="run what has a command of its own, too")


def pytest_configure() -> None:
    """A terminated test run ends its servers as an interrupted one does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_qwen3_moe() -> Path:
    return tiny_model("qwen3_moe")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return tiny_model("llama")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU and this machine has none"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices on shared cores: more threads only wait for each other."""
    torch = pytest.importorskip("torch", reason="sets the threads of torch")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
