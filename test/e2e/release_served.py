"""What tests of servers must know of differences between releases of SGLang, all in one place."""

from __future__ import annotations

from importlib.metadata import version

IS_0_5_17 = version("sglang") == "0.5.17"

ENDS_THE_RELEASE: tuple[str, ...] = () if IS_0_5_17 else ("empty text",)
"""Bad requests, by the names of test_faults.py, that end the release; a layered server answers them."""

REFUSED_BY_THE_RELEASE: tuple[str, ...] = ("completions-no-token",)
"""Requests, by the names of features_requests.py, that get 400."""
if not IS_0_5_17:
    REFUSED_BY_THE_RELEASE += ("hidden-states-last",)  # 0.5.23 takes `last` from an Engine alone

HAS_GET_LOAD = IS_0_5_17
"""Whether `/get_load` is there, the older one of two paths."""
