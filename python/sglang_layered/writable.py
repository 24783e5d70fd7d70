"""Whether a command can write what it was asked to write, tried before it works for minutes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sglang_layered.errors import ConfigError


def check_writable(path: Path, option: str = "--out") -> None:
    """Make the folder of a file that is to be written, and try to write there.

    Raises:
        ConfigError: it cannot be done; one line that names the option.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}: {path} cannot be written ({error.strerror}); give another place"
        ) from error
