"""A patch set on disk: series, patches, and the manifest that pins upstream's files by hash."""

import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sglang_layered.errors import PatchError
from sglang_layered.patching.series import FileDiff, Patch, parse_patch, parse_series


@dataclass(frozen=True, slots=True)
class FileHashes:
    """SHA-256 of an upstream file before and after the whole series."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a hunk goes, without upstream's text: hashes of the two pristine lines around it, and a scope.

    `before` and `after` are SHA-256 of the stripped lines; `scope` is the qualified name of the innermost def
    or class around the place, empty at module level.
    """

    path: str
    scope: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """What the manifest knows of one patch: the hash of its diff and the anchors of its hunks, in order."""

    diff: str
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The exact SGLang that a patch set belongs to; paths are relative to the sglang package folder."""

    sglang: str
    files: dict[str, FileHashes]
    patches: dict[str, PatchRecord]

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        return cls(
            sglang=raw["sglang"],
            files={path: FileHashes(**hashes) for path, hashes in raw["files"].items()},
            patches={
                name: PatchRecord(record["diff"], tuple(Anchor(**anchor) for anchor in record["anchors"]))
                for name, record in raw["patches"].items()
            },
        )

    def to_json(self) -> str:
        """Write the manifest as stable, indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class PatchSet:
    """The patches of one SGLang version, in the order of the series."""

    folder: Path
    patches: tuple[Patch, ...]
    manifest: Manifest

    def diffs(self, path: str) -> list[FileDiff]:
        """All diffs of one upstream file, in the order of the series."""
        return [diff for patch in self.patches for diff in patch.files if diff.path == path]


def default_root() -> Path:
    """Return the installed folder that holds one patch set per SGLang version."""
    return Path(str(files("sglang_layered_patches")))


def supported_versions(root: Path) -> tuple[str, ...]:
    """Return the SGLang versions that have a patch set, oldest first."""
    versions = [entry.parent.name for entry in root.glob("*/series")]
    return tuple(
        sorted(versions, key=lambda version: [int(part) for part in version.split(".") if part.isdigit()])
    )


def set_folder(root: Path, version: str) -> Path:
    """Return the folder of the patch set for `version`, or refuse the version."""
    supported = supported_versions(root)
    if version not in supported:
        raise PatchError(
            f"no patch set for SGLang {version}; supported: {', '.join(supported) or 'none'}. "
            f"Install a supported one, e.g. `pip install sglang=={supported[-1] if supported else 'VERSION'}`"
        )
    return root / version


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a patch set."""
    path = folder / "manifest.json"
    try:
        return Manifest.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PatchError(f"{path} cannot be read ({error}); reinstall sglang-layered") from error


def load_patches(folder: Path) -> tuple[Patch, ...]:
    """Read the patches of a patch set in the order of its series."""
    try:
        names = parse_series((folder / "series").read_text())
        return tuple(parse_patch(name, (folder / name).read_bytes()) for name in names)
    except OSError as error:
        raise PatchError(
            f"{folder}: the series cannot be read ({error}); reinstall sglang-layered"
        ) from error


def load_patch_set(folder: Path) -> PatchSet:
    """Read a whole patch set."""
    return PatchSet(folder, load_patches(folder), load_manifest(folder))
