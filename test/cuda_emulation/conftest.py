"""One worker an emulated device for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import Workers, build_stub_driver


@pytest.fixture(scope="session")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 without a device."""
    folder = tmp_path_factory.mktemp("driver")
    try:
        build_stub_driver(folder)
    except FileNotFoundError as error:
        pytest.skip(reason=str(error))
    return folder


@pytest.fixture(scope="session")
def workers(stub_driver: Path) -> Iterator[Workers]:
    started = Workers(stub_driver)
    yield started
    started.stop()
