"""What tests of servers must know of differences between releases of SGLang, all in one place."""

from __future__ import annotations

from importlib.metadata import version

IS_0_5_17 = version("sglang") == "0.5.17"

ENDS_THE_RELEASE = () if IS_0_5_17 else ("empty text",)
"""Bad requests, by the names of test_faults.py, that end the release; a layered server answers them."""
