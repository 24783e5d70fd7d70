"""The laboratory beside the runtime: what asks a server, or computes without one.

Benchmark, studies of the paper, cost model, recorded traces, made models and GPU studies. It may import
`sglang_layered`, never the other way round, and no part of it gets into a server's process (but for models
that a user names to SGLang as external ones: `models/routed_dummy`).
"""
