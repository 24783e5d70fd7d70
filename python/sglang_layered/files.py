"""Files that are written for minutes or hours: tried before, whole up to the last record."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from sglang_layered.errors import ConfigError


def check_output(path: Path, option: str = "--out") -> None:
    """Make the folder of a file that a command is to write. Raises as `check_writable`."""
    check_writable(str(path), f"{option} {path}")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_writable(path: str, where: str) -> None:
    """Refuse a path that could not be written to; `where` begins the message, nothing stays behind.

    Missing folders are made by the one who writes, so the nearest that is there is tried.

    Raises:
        ConfigError: with the reason of the operating system.
    """
    try:
        _probe(Path(path))
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; give a path that can be written") from error


def _probe(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.is_file():
        path.open("ab").close()
    elif path.exists():  # a pipe or a device: opening it could wait for a reader
        return
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    with TemporaryFile(dir=folder) as probe:  # a byte, since a full disk still lets files be made
        probe.write(b"\n")
        probe.flush()


class WholeFile:
    """Writes each piece as a whole or not at all, at once, so a killed server leaves no half of one."""

    def __init__(self, path: str, mode: Literal["a", "w"]) -> None:
        """Open it, with the folders above it.

        Raises:
            OSError: it cannot be written.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._file = place.open("ab" if mode == "a" else "wb", buffering=0)

    def write(self, text: str) -> None:
        """Append.

        Raises:
            OSError: it could not be written; then nothing of it is in the file.
        """
        data = text.encode()
        written = self._file.write(data) or 0
        if written < len(data):  # a full disk takes a part before it refuses the rest
            with suppress(OSError):  # a pipe cannot be cut
                self._file.truncate(os.fstat(self._file.fileno()).st_size - written)
                self._file.seek(0, os.SEEK_END)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """No more will come."""
        self._file.close()


class FileListener:
    """What listeners that write one file share; `mode` is how it is opened."""

    mode: Literal["a", "w"] = "a"
    check = staticmethod(check_writable)  # before a server starts

    def __init__(self, path: str) -> None:
        self._file = WholeFile(path, self.mode)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
