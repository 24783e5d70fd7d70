"""What a port to another SGLang has before it: every symbol that we use, and every patch.

A use in our source is an import from `sglang`, an attribute of what is imported, of a parameter that is
annotated with it, or of one of the objects whose names are `owners` in upstream/guards.toml. What our code
follows without naming it stands there too, and a patch uses what it inserts lines into. Each use leads to a
line of ours: a change upstream names the code to look at.

`symbols.json` of a patch set keeps what the symbols were in the release that it is for. `scripts/patch-set
refresh --symbols` writes it, when a person has read what changed. Nothing of the other SGLang is imported.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sglang_layered.config import LayeredConfig
from sglang_layered.errors import PatchError
from sglang_layered.patching.engine import PatchStatus, status
from sglang_layered.patching.patch_set import load_manifest, load_patches, set_folder, supported_versions
from sglang_layered.patching.site import Site
from sglang_layered.patching.symbols import Fingerprint, Release, definitions, file_of, last_name

OURS = Path(__file__).resolve().parents[1]
FILE = "symbols.json"
GUARDS = "upstream/guards.toml"
PLACE = re.compile(r"[\w/]+\.py:[\w.]+")
GETTERS = ("attrgetter", "methodcaller")  # of operator: a name of a member in quotes

Change = Literal["same", "body changed", "signature changed", "moved", "gone", "new use", "left out"]
FOUND: tuple[Change, ...] = ("gone", "moved", "signature changed", "body changed", "new use")  # to be read
ORDER: tuple[Change, ...] = (*FOUND, "left out", "same")


@dataclass(frozen=True, slots=True)
class Use:
    """`symbol` is FILE:NAME or FILE:CLASS.NAME, `place` our file and line, `why` where code cannot say."""

    symbol: str
    place: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class SymbolReport:
    """One symbol; `places` are our files and lines that use it, `where` the file that it has moved to.

    `why` says what we follow of it, where the lines cannot.
    """

    symbol: str
    change: Change
    places: tuple[str, ...]
    where: str | None = None
    why: str = ""


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
        return fits and not any(entry.change in FOUND for entry in self.symbols)


def port(site: Site, root: Path, base: str, ours: Path = OURS) -> PortReport:
    """Compare an unpacked SGLang with the release `base` that we are built on.

    Raises:
        PatchError: there is no patch set for `base`, or it has no readable symbols.json.
    """
    folder = set_folder(root, base)
    known, release = read_symbols(folder), Release(site.package)
    found, absent = all_uses(folder, ours, site.version), left_out(folder, ours, site.version)
    reports = [_compare(release, known.get(symbol), each, absent) for symbol, each in found.items()]
    reports.sort(key=lambda entry: ORDER.index(entry.change))
    return PortReport(site.version, base, tuple(reports), status(site, root).patches)


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
            f"{folder / FILE} cannot be read ({error}); reinstall sglang-layered, or as a developer run "
            "`scripts/patch-set refresh --symbols`"
        ) from error


def all_uses(folder: Path, ours: Path = OURS, version: str | None = None) -> dict[str, list[Use]]:
    """Every symbol that we use, follow or insert lines into with the patch set of `folder`, and where.

    Of the packages of releases that of `version`, or of the patch set where there is none.
    """
    package = _package(folder, ours, version)
    found: dict[str, list[Use]] = {}
    for use in (*uses(ours, package), *followed(ours), *seams(folder)):
        if not use.place.startswith(package_of(None)) or use.place.startswith(f"{package}/"):
            found.setdefault(use.symbol, []).append(use)
    return dict(sorted(found.items()))


def left_out(folder: Path, ours: Path = OURS, version: str | None = None) -> dict[str, str]:
    """What the release has not got and our code for it does without, with the reason."""
    package = _package(folder, ours, version)
    tables = [each for each in read_guards(ours).get("absent", ()) if package_of(each["release"]) == package]
    return {symbol: each["why"] for each in tables for symbol in each["symbols"]}


def base_of(root: Path, version: str) -> str:
    """What a release is compared with: what is kept of itself, or of the newest that has a patch set."""
    versions = supported_versions(root)
    return version if version in versions else versions[-1]


def _package(folder: Path, ours: Path, version: str | None) -> str:
    """Where the code for a release is, or where there is none that for the patch set's; empty: nowhere."""
    return next((each for each in map(package_of, (version, folder.name)) if (ours / each).is_dir()), "")


def package_of(version: str | None) -> str:
    """Where the room for SGLang has what is of one release."""
    return f"upstream/v{(version or '').replace('.', '_')}"


def uses(ours: Path, package: str = "") -> Iterator[Use]:
    """Every use of SGLang in the Python files below `ours`, in order of files; of releases of one package."""
    owners = read_guards(ours).get("owners", {})
    own = {f"{owners.get('server_args')}.{flag.name}" for flag in fields(LayeredConfig)}  # that we add to it
    for path in sorted(ours.rglob("*.py")):
        folder = path.parent.relative_to(ours).as_posix()
        if folder.startswith(package_of(None)) and folder != package:
            continue
        yield from (use for use in _uses_in(path, path.relative_to(ours), owners) if use.symbol not in own)


def _uses_in(path: Path, file: Path, owners: Mapping[str, str]) -> Iterator[Use]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang."):
            for alias in node.names:
                symbol = f"{file_of(node.module or '')}:{alias.name}"
                imported[alias.asname or alias.name] = symbol
                yield Use(symbol, f"{file}:{node.lineno}")
    by_node = _annotated(nodes, imported)
    classes = {name: symbol for name, symbol in imported.items() if name[:1].isupper()}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            owner, members = node.value, [(node.attr, node.lineno)]
        elif isinstance(node, ast.Call) and last_name(node.func) == "replace" and node.args:
            owner = node.args[0]
            members = [(each.arg, each.value.lineno) for each in node.keywords if each.arg]
        elif isinstance(node, ast.Call) and last_name(node.func) in GETTERS:
            texts = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
            owner, members = node.func, [(text.partition(".")[0], node.lineno) for text in texts]
        else:
            continue
        name = last_name(owner).lstrip("_")
        kind = by_node.get(id(owner)) or owners.get(f"{file}:{name}") or owners.get(name) or classes.get(name)
        for member, line in members if kind is not None else ():
            if not member.startswith("layered_"):
                yield Use(f"{kind}.{member}", f"{file}:{line}")


def _annotated(nodes: list[ast.AST], imported: Mapping[str, str]) -> dict[int, str]:
    """SGLang's class of each name that stands for a parameter annotated with it, by the node's identity."""
    found: dict[int, str] = {}
    for function in nodes:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types: dict[str, str] = {}
        for each in (*function.args.args, *function.args.kwonlyargs):
            names = {part.id for part in ast.walk(each.annotation or each) if isinstance(part, ast.Name)}
            classes = {name for name in names if name[:1].isupper()}
            if len(classes) == 1 and classes <= imported.keys():  # it can be nothing else, nor a list of them
                types[each.arg] = imported[classes.pop()]
        named = (node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in types)
        found |= {id(node): types[node.id] for node in named}
    return found


def read_guards(ours: Path) -> dict[str, Any]:
    """The tables of guards.toml below `ours`; none where it is not."""
    import tomllib  # not on Python 3.10, where servers run all the same

    path = ours / GUARDS
    return tomllib.loads(path.read_text()) if path.is_file() else {}


def followed(ours: Path) -> Iterator[Use]:
    """What guards.toml lists, once for each of our functions that it names.

    Raises:
        PatchError: it names a function that is not there.
    """
    tables = read_guards(ours)
    for entry in tables.get("follows", ()):
        for symbol in entry["symbols"]:
            yield from (Use(symbol, _line_of(ours, place), entry["why"]) for place in entry["ours"])
    for entry in tables.get("function", ()):
        named = dict.fromkeys(PLACE.findall("\n".join(entry.get("each", {}).values())))
        places = [_line_of(ours, place) for place in named] or [GUARDS]
        yield from (Use(f"{entry['file']}:{entry['name']}", place, entry["ours"]) for place in places)


def seams(folder: Path) -> Iterator[Use]:
    """The functions and classes that a patch set inserts lines into, with each patch's reason."""
    reasons = {patch.name: patch.header["Why"] for patch in load_patches(folder)}
    for name, record in load_manifest(folder).patches.items():
        for anchor in record.anchors:
            if anchor.scope:
                yield Use(f"{anchor.path}:{anchor.scope}", f"patches/{folder.name}/{name}", reasons[name])


def _line_of(ours: Path, place: str) -> str:
    """FILE:LINE of our function or class FILE:NAME; PatchError when there is none."""
    file, _, name = place.partition(":")
    line = _lines(ours / file).get(name)
    if line is None:
        raise PatchError(f"{GUARDS} names {place}, which is not there; name what does its work now")
    return f"{file}:{line}"


@cache
def _lines(path: Path) -> dict[str, int]:
    tree = ast.parse(path.read_text() if path.is_file() else "")
    return {name: node.lineno for name, node in definitions(tree)}


def _compare(
    release: Release, was: Fingerprint | None, found: list[Use], absent: Mapping[str, str]
) -> SymbolReport:
    symbol, where = found[0].symbol, None
    now = release.fingerprint(symbol)
    change: Change = "same"
    if now is None and symbol in absent:
        change = "left out"
    elif now is None:
        if was != Fingerprint():  # an attribute's name alone is no trace
            where = release.elsewhere(symbol)
        change = "gone" if where is None else "moved"
    elif was is None:
        change = "new use"
    elif was != now:
        change = "body changed" if was.signature == now.signature else "signature changed"
    places = tuple(dict.fromkeys(use.place for use in found))
    reasons = [absent[symbol]] if change == "left out" else [use.why for use in found if use.why]
    why = "; ".join(dict.fromkeys(reasons))
    return SymbolReport(symbol, change, places, where, why)
