"""Every release of SGLang that we know has a package of the same names; nothing else asks for versions."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from sglang_layered.errors import UnsupportedError
from sglang_layered.patching import Site
from sglang_layered.patching.port import uses
from sglang_layered.patching.symbols import Release, assigned
from sglang_layered.upstream import releases
from sglang_layered.upstream.releases import CONCERNS, PACKAGES

OURS = Path(__file__).resolve().parents[2] / "python" / "sglang_layered"
UPSTREAM = OURS / "upstream"
PARTS = [(package, concern) for package in PACKAGES.values() for concern in CONCERNS]


def signatures(path: Path) -> dict[str, str]:
    """Public names of a module: parameters and what is given of functions; of values, nothing."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = f"({ast.unparse(node.args)})"
        elif isinstance(node, ast.ImportFrom):
            found |= {each.name: "" for each in node.names if each.asname == each.name}
        found |= dict.fromkeys(assigned(node), "")
    return {name: text for name, text in found.items() if not name.startswith("_")}


@pytest.mark.parametrize(("package", "concern"), PARTS)
def test_a_release_has_the_names_of_the_others_with_their_arguments(package: str, concern: str) -> None:
    first = signatures(UPSTREAM / next(iter(PACKAGES.values())) / f"{concern}.py")
    own = signatures(UPSTREAM / package / f"{concern}.py")
    private = {name for name in own.keys() - first.keys() if name.isupper()}  # reasons that it gives
    assert own.keys() - private == first.keys()
    differing = {name for name in first if first[name] and own[name] and own[name] != first[name]}
    assert not differing


def test_every_release_has_every_concern_and_no_other_module() -> None:
    for package in PACKAGES.values():
        assert {path.stem for path in (UPSTREAM / package).glob("*.py")} == {"__init__", *CONCERNS}
    assert {path.name for path in UPSTREAM.glob("v*")} == set(PACKAGES.values())


def test_the_installed_release_is_chosen(real_site: Site) -> None:
    for concern in CONCERNS:
        chosen = getattr(releases, concern)
        assert chosen is import_module(f"sglang_layered.upstream.{PACKAGES[real_site.version]}.{concern}")


def test_a_release_that_is_not_known_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "RELEASE", "0.5.99")
    with pytest.raises(UnsupportedError, match=r"0\.5\.17 and 0\.5\.23 and this is 0\.5\.99"):
        _ = releases.serving


def test_no_other_module_asks_for_a_version_of_sglang() -> None:
    asks = re.compile(r"sglang\.version|sglang\.__version__|RELEASE\b|\bv0_5_\d+\b")
    files = [path for path in OURS.rglob("*.py") if path.name != "releases.py"]
    assert not [str(path) for path in files if asks.search(path.read_text())]


def test_what_is_of_the_installed_release_is_there(real_site: Site) -> None:
    package = f"upstream/{PACKAGES[real_site.version]}"
    release = Release(real_site.package)
    found = {use.symbol: use.place for use in uses(OURS, package) if use.place.startswith(package)}
    assert found
    assert not {place: name for name, place in found.items() if release.fingerprint(name) is None}
