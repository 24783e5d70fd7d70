"""The wheels that a GPU host lacks: which, how large once packed, what is cut out of them, how to get them.

The host is taken to have Python, PyTorch for CUDA and the usual scientific packages. Knows pip and the wheel
format; knows nothing of archives.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_layered.errors import LabError

# requirement, packed size in KiB (measured; only `--dry-run` reads it)
TABLE = """
sglang==0.5.17 18644
sglang-kernel==0.4.5 12430
flashinfer-python==0.6.15.post1 13654
apache-tvm-ffi==0.1.11 2158
transformers==5.12.1 10373
tokenizers==0.22.2 2154
fastapi==0.165.0 145
starlette==1.10.0 79
opentelemetry-api==1.45.2 60
uvicorn==0.54.0 85
pydantic==2.14.3 456
pydantic-core==2.50.4 1627
annotated-types==0.8.0 14
typing-extensions==4.16.0 40
typing-inspection==0.4.5 15
pyzmq==27.3.0 690
orjson==3.13.0 105
msgspec==0.22.0 194
pybase64==1.5.1 77
setproctitle==1.3.8 28
python-multipart==0.0.34 30
partial-json-parser==0.2.1.1.post7 11
openai==2.6.1 982
jiter==0.19.0 264
distro==1.9.0 20
sniffio==1.3.1 11
openai-harmony==0.0.4 2175
compressed-tensors==0.20.0 232
loguru==0.7.3 58
gguf==0.19.0 103
soundfile==0.13.1 1005
cffi==2.1.1 187
pycparser==3.12 58
jsonschema==4.26.0 86
jsonschema-specifications==2025.9.1 19
referencing==0.37.0 27
rpds-py==2026.9.1 284
xgrammar==0.2.1 9001
dill==0.4.1 115
aiohttp==3.14.5 1467
aiohappyeyeballs==2.7.1 15
aiosignal==1.4.0 8
annotated-doc==0.0.7 6
attrs==26.1.0 64
einops==0.8.2 64
frozenlist==1.8.0 189
interegular==0.3.3 23
multidict==7.2.1 398
nvidia-ml-py==13.615.71 46
prometheus-client==0.26.0 63
propcache==0.5.4 193
tabulate==0.10.0 36
tomlkit==0.15.2 40
uvloop==0.23.0 3277
watchfiles==1.3.0 352
xxhash==4.1.0 318
yarl==1.25.1 101
zstandard==0.25.0 3905
click==8.5.1 116
rich==15.0.0 266
markdown-it-py==4.3.0 97
mdurl==0.1.2 10
pygments==2.21.0 1142
httpx==0.28.1 71
httpcore==1.0.9 76
h11==0.16.0 37
anyio==4.16.0 128
idna==3.20 40
certifi==2026.10.18 122
psutil==7.2.2 135
pytest==9.2.0 386
pluggy==1.7.0 27
iniconfig==2.3.1 8
packaging==26.3 121
pytest-timeout==2.4.0 14
hypothesis==6.170.15 957
sortedcontainers==2.4.0 27
"""

# Files left out of a wheel, by the start of their names: what an sm_90 chip with the FlashInfer or Triton
# attention backend never loads, and a static library.
DROP: dict[str, tuple[str, ...]] = {
    "sglang-kernel": (
        "sgl_kernel/flash_ops",  # FlashAttention-3, 1.1 GB: `--attention-backend fa3` is not possible without
        "sgl_kernel/flashmla_ops",
        "sgl_kernel/infllm_ops",
        "sgl_kernel/sm100/",
    ),
    "xgrammar": ("xgrammar/lib/",),
}

# Modules that sglang imports at its top level and that a server never calls.
STUBS = {
    "IPython/__init__.py": "",
    "IPython/display.py": (
        "def _nothing(*args, **kwargs):\n    return None\n\n\n"
        "HTML = Markdown = display = clear_output = _nothing\n"
    ),
}


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel to carry. `packed_bytes` is what it is expected to take; 0 when nobody has measured it."""

    name: str
    version: str
    packed_bytes: int = 0

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"

    @property
    def drop(self) -> tuple[str, ...]:
        """Starts of the names of files that stay behind."""
        return DROP.get(self.name, ())

    @classmethod
    def parse(cls, requirement: str, packed_kib: int = 0) -> Wheel:
        """Read NAME==VERSION."""
        name, equals, version = requirement.partition("==")
        if not (name and equals and version):
            raise LabError(f"--add {requirement}: give NAME==VERSION")
        return cls(name, version, packed_kib * 1024)

    def find(self, folder: Path) -> Path | None:
        """The wheel's file in `folder`, or None."""
        stem = self.name.replace("-", "_").replace(".", "_").lower()
        for path in sorted(folder.glob("*.whl")):
            parts = path.name.split("-")
            if parts[0].replace(".", "_").lower() == stem and parts[1] == self.version:
                return path
        return None


def carried_wheels() -> tuple[Wheel, ...]:
    """Every wheel of the table, in its order."""
    return tuple(Wheel.parse(words[0], int(words[1])) for words in map(str.split, TABLE.split("\n")) if words)


def download(wheels: Sequence[Wheel], folder: Path, python_version: str) -> None:
    """Fetch each wheel without its dependencies, for CPython `python_version` on Linux x86-64."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--python-version", python_version, "--implementation", "cp"]
    for abi in ("cp" + python_version.replace(".", ""), "abi3", "none"):
        command += ["--abi", abi]
    for platform in _platforms():
        command += ["--platform", platform]
    command += ["--dest", str(folder), *(wheel.requirement for wheel in wheels)]
    if subprocess.run(command).returncode != 0:
        raise LabError(
            "pip could not download every wheel (its message stands above); check the index, or put them"
            f" into {folder} yourself"
        )


def _platforms() -> list[str]:
    # pip takes each tag literally: manylinux_2_28 does not stand for manylinux_2_27.
    exact = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    return [*exact, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def rewrite_wheel(source: Path, target: Path, drop: tuple[str, ...], compression: int) -> None:
    """Write `source` again without the files that start with one of `drop`, compressed by `compression`.

    `compression` is a constant of zipfile; pip reads whatever zipfile reads. The wheel's RECORD is made anew,
    and members get a fixed date, so the same wheel gives the same bytes.
    """
    lines: list[tuple[str, str, str]] = []
    record = None
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            if info.filename.endswith(".dist-info/RECORD"):
                record = info.filename
            elif not info.is_dir() and not (drop and info.filename.startswith(drop)):
                data = old.read(info)
                _put(new, info.filename, data, info.external_attr, compression)
                lines.append((info.filename, _digest(data), str(len(data))))
        if record is None:
            raise LabError(f"{source}: no RECORD in this wheel; delete the file, so that it is fetched again")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*lines, (record, "", "")])
        _put(new, record, text.getvalue().encode(), 0o644 << 16, compression)


def _put(archive: zipfile.ZipFile, name: str, data: bytes, mode: int, compression: int) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode, compression
    archive.writestr(info, data)


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
