"""Bringing the project to a GPU host that reaches no registry, and measuring there: docs/gpu-host.md.

`wheels` and `bundle` need the standard library only; the suite's stages need a patched SGLang.
"""
