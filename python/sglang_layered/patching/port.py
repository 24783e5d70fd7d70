"""What a port to another SGLang has before it: every symbol that we use, and every patch.

`symbols.json` of a patch set keeps what the symbols were in the release that it is for; `patch port --keep`
writes it. Nothing of the other SGLang is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sglang_layered.errors import PatchError
from sglang_layered.patching.manifest import set_folder
from sglang_layered.patching.site import Site
from sglang_layered.patching.status import PatchStatus, status
from sglang_layered.patching.symbols import Fingerprint, Release, uses

OURS = Path(__file__).resolve().parents[1]
FILE = "symbols.json"

Change = Literal["same", "body changed", "signature changed", "moved", "gone", "new use"]
ORDER: tuple[Change, ...] = ("gone", "moved", "signature changed", "body changed", "new use", "same")


@dataclass(frozen=True, slots=True)
class SymbolReport:
    """One symbol; `places` are our files and lines that use it, `where` the file that it has moved to."""

    symbol: str
    change: Change
    places: tuple[str, ...]
    where: str | None = None


@dataclass(frozen=True, slots=True)
class PortReport:
    """Of a whole SGLang, what needs work first."""

    version: str
    base: str
    symbols: tuple[SymbolReport, ...]
    patches: tuple[PatchStatus, ...]

    @property
    def is_same(self) -> bool:
        """True when nothing is to be done."""
        fits = all(entry.text in ("applied", "fits") for entry in self.patches)
        return fits and all(entry.change == "same" for entry in self.symbols)


def port(site: Site, root: Path, base: str, ours: Path = OURS) -> PortReport:
    """Compare an unpacked SGLang with the release `base` that we are built on.

    Raises:
        PatchError: there is no patch set for `base`, or it has no readable symbols.json.
    """
    known, places = read_symbols(set_folder(root, base)), _places(ours)
    release = Release(site.package)
    reports = [_compare(symbol, known, release, places[symbol]) for symbol in sorted(places)]
    reports.sort(key=lambda entry: ORDER.index(entry.change))
    return PortReport(site.version, base, tuple(reports), tuple(status(site, root).patches))


def write_symbols(site: Site, folder: Path, ours: Path = OURS) -> Path:
    """Keep what our symbols are in this SGLang.

    Raises:
        PatchError: it has not got all of them.
    """
    release, found, missing = Release(site.package), {}, []
    for symbol, places in sorted(_places(ours).items()):
        made = release.fingerprint(symbol)
        if made is None:
            missing.append(f"{symbol} ({places[0]})")
        else:
            found[symbol] = [made.signature, made.body]
    if missing:
        raise PatchError("\n  ".join([f"SGLang {site.version} has not got what we use:", *missing]))
    path = folder / FILE
    path.write_text(json.dumps(found, indent=0) + "\n")
    return path


def read_symbols(folder: Path) -> dict[str, Fingerprint]:
    """What a patch set keeps.

    Raises:
        PatchError: nothing that can be read.
    """
    try:
        values = json.loads((folder / FILE).read_text())
        return {symbol: Fingerprint(*each) for symbol, each in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PatchError(
            f"{folder / FILE} cannot be read ({error}); run `sglang-layered patch port --keep`"
        ) from error


def _places(ours: Path) -> dict[str, tuple[str, ...]]:
    places: dict[str, tuple[str, ...]] = {}
    for use in uses(ours):
        places[use.symbol] = (*places.get(use.symbol, ()), use.place)
    return places


def _compare(
    symbol: str, known: Mapping[str, Fingerprint], release: Release, places: tuple[str, ...]
) -> SymbolReport:
    was, now = known.get(symbol), release.fingerprint(symbol)
    if now is None:
        where = release.elsewhere(symbol)
        return SymbolReport(symbol, "gone" if where is None else "moved", places, where)
    if was is None:
        return SymbolReport(symbol, "new use", places)
    change: Change = "same"
    if was.signature != now.signature:
        change = "signature changed"
    elif was.body != now.body:
        change = "body changed"
    return SymbolReport(symbol, change, places)
