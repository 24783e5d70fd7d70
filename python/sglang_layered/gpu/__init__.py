"""Bringing the project to a GPU host that reaches no registry, and measuring there; docs/gpu-host.md explains.

`wheels`, `bundle` and `roofline` need the standard library only; the stages of the suite need a patched SGLang.
"""
