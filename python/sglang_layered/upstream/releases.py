"""Where the releases of SGLang that are served differ: a package for each, chosen here, once, by its version.

`from sglang_layered.upstream.releases import serving` gives the module `serving` of the installed release's
package. All packages have the same modules, with the same names in them. They import SGLang, and nothing of
ours. Nothing else asks for a version or imports such a package (`lint-imports`, test_releases.py).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sglang.version import __version__ as RELEASE

from sglang_layered.errors import UnsupportedError

if TYPE_CHECKING:
    from sglang_layered.upstream.v0_5_17 import arguments as arguments
    from sglang_layered.upstream.v0_5_17 import boundaries as boundaries
    from sglang_layered.upstream.v0_5_17 import forwarding as forwarding
    from sglang_layered.upstream.v0_5_17 import requests as requests
    from sglang_layered.upstream.v0_5_17 import serving as serving

PACKAGES = {"0.5.17": "v0_5_17", "0.5.23": "v0_5_23"}
CONCERNS = ("arguments", "boundaries", "forwarding", "requests", "serving")


def __getattr__(concern: str) -> Any:
    """Import a module of the installed release; one by one, since arguments are looked at before torch is."""
    if concern not in CONCERNS:
        raise AttributeError(concern)
    if RELEASE not in PACKAGES:
        raise UnsupportedError(
            f"we know SGLang {' and '.join(PACKAGES)} and this is {RELEASE}; install one of these"
        )
    return import_module(f"sglang_layered.upstream.{PACKAGES[RELEASE]}.{concern}")
