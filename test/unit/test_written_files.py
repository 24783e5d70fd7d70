"""Files that a server writes: probed at start without a trace, whole after a full disk, told of once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from listener_story import STORY
from sglang_layered.errors import ConfigError
from sglang_layered.files import WholeFile, check_writable
from sglang_layered.listeners.dispatch import Listeners, check_listeners
from sglang_layered.listeners.jsonl import JsonlListener
from sglang_layered.listeners.perfetto import PerfettoListener

FULL = Path("/dev/full")  # Linux: takes no byte, as a full disk

needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def test_a_probe_leaves_nothing_and_changes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old.jsonl"
    old.write_text("a line\n")
    before = old.stat().st_mtime_ns
    check_writable(str(old), "--flag")
    check_writable(str(tmp_path / "new" / "{dp}" / "new.jsonl"), "--flag")
    assert list(tmp_path.iterdir()) == [old]
    assert (old.read_text(), old.stat().st_mtime_ns) == ("a line\n", before)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_writable(str(tmp_path / "pipe"), "--flag")


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/null/steps.jsonl", "Not a directory"), ("/", "Is a directory"), ("/proc/x/y", ".")],
)
def test_a_path_that_cannot_be_written_is_one_line(path: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--flag {path}: .*{reason}.*; give a path that can be written$"):
        check_writable(path, f"--flag {path}")


def test_listeners_that_ship_are_probed_and_others_when_they_can_be(tmp_path: Path) -> None:
    check_listeners([f"jsonl={tmp_path}/a", f"perfetto={tmp_path}/b", f"{__name__}:Silent=x"])
    for spec in ("jsonl=/dev/null/a", "perfetto=/", f"{__name__}:Checks=bad"):
        with pytest.raises(ConfigError, match=f"^--layered-listeners {spec}: "):
            check_listeners([spec])
    assert not list(tmp_path.iterdir())


class Silent:
    def __init__(self, argument: str) -> None:
        raise AssertionError("a check makes no listener")


class Checks(Silent):
    @staticmethod
    def check(argument: str, where: str) -> None:
        raise ConfigError(f"{where}: {argument} is bad")


def test_a_piece_that_fits_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = WholeFile(str(tmp_path / "file"), "w")
    file.write("first\n")
    real = file._file

    class Small:
        """A disk with room for three bytes."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def write(self, data: bytes) -> int:
            return real.write(data[:3])

    monkeypatch.setattr(file, "_file", Small())
    with pytest.raises(OSError, match="No space left"):
        file.write("second\n")
    assert (tmp_path / "file").read_text() == "first\n"
    monkeypatch.setattr(file, "_file", real)
    file.write("third\n")
    file.close()
    assert (tmp_path / "file").read_text() == "first\nthird\n"


class FullFrom:
    """A file that takes so many pieces."""

    def __init__(self, file: WholeFile, num_pieces: int) -> None:
        self._file, self._left = file, num_pieces

    def write(self, text: str) -> None:
        if self._left == 0:
            raise OSError(28, "No space left on device")
        self._left -= 1
        self._file.write(text)

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("kind", [JsonlListener, PerfettoListener])
def test_a_full_disk_is_told_of_once_and_the_others_hear_on(
    kind: type[JsonlListener] | type[PerfettoListener], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full, good = kind(str(tmp_path / "full")), JsonlListener(str(tmp_path / "good"))
    full._file = FullFrom(full._file, 2)
    listeners = Listeners([full, good])
    with caplog.at_level(logging.WARNING):
        for event in STORY:
            listeners.emit(event)
        listeners.close()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and record.exc_info is None
    assert "can no longer write" in record.getMessage() and "the server goes on" in record.getMessage()
    assert len((tmp_path / "good").read_text().splitlines()) == len(STORY)
    assert (tmp_path / "full").read_text()


@needs_full
def test_a_device_without_room_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    listeners = Listeners([JsonlListener(str(FULL))])
    with caplog.at_level(logging.WARNING):
        for event in STORY:
            listeners.emit(event)
        listeners.close()
    assert len(caplog.records) == 1
