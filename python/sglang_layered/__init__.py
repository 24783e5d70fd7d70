"""Layered prefill for SGLang.

Importing this package imports neither torch nor sglang: `sglang/__init__.py` reaches `sglang_layered.seams`
before either is loaded.
"""

__version__ = "0.1.0"
