"""Pages of the reference: tables that scripts wrote into the documents, and what the code says of itself.

Knows nothing of MkDocs. `::: name` is mkdocstrings': the object's docstring, signature and members.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

LAB = "sglang_layered_lab.bench"
ELSEWHERE = (
    "sglang_layered.core.events.",
    "sglang_layered.errors.",
)  # exported by hooks.py, on pages of their own


def pages(repo: Path) -> dict[str, str]:
    """Text of each page by its place among the site's sources."""
    docs = repo / "docs"
    any_mode, layered = tables(docs / "flags.md", "| flag | value |")
    [metrics] = tables(docs / "metrics.md", "| metric | kind |")
    keys, sweep_keys = tables(docs / "benchmark.md", "| key | type |")
    texts = {
        "README": OVERVIEW,
        "flags": f"{FLAGS}\n## In either prefill mode\n\n{any_mode}\n## In layered mode\n\n{layered}",
        "metrics": f"{METRICS}\n{metrics}",
        "events": f"{EVENTS}\n{_members('sglang_layered.core.events')}",
        "bench-spec": f"{SPEC}\n## A run\n\n{keys}\n## A sweep\n\n{sweep_keys}",
        "records": RECORDS + "".join(_module(f"{LAB}.{name}") for name in ("record", "trace", "metrics")),
        "hooks": HOOKS + "".join(map(_object, exported(repo / "python/sglang_layered/hooks.py"))),
        "errors": ERRORS + _members("sglang_layered.errors"),
    }
    return {f"reference/{name}.md": text for name, text in texts.items()}


def tables(document: Path, head: str) -> list[str]:
    """Tables of a document whose first line begins with `head`."""
    found: list[str] = []
    inside = False
    for line in document.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith(head):
            found.append("")
            inside = True
        inside = inside and line.startswith("|")
        if inside:
            found[-1] += line
    return found


def exported(module: Path) -> Iterator[str]:
    """Full names of what a module imports as its own: `from a import B as B`."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names if name.asname == name.name)


def _object(name: str) -> str:
    return "" if name.startswith(ELSEWHERE) else f"\n::: {name}\n"


def _members(module: str, heading_level: int = 2) -> str:
    options = f"{{ heading_level: {heading_level}, show_root_heading: false, show_root_toc_entry: false }}"
    return f"\n::: {module}\n    options: {options}\n"


def _module(name: str) -> str:
    return f"\n## {name.partition('.')[2]}\n{_members(name, 3)}"


OVERVIEW = """# Reference

Each of these pages is made from the code.

| page | what is in it |
|---|---|
| [Flags](flags.md) | every flag that the server has more than SGLang's |
| [Metrics](metrics.md) | every metric that the server has more than SGLang's |
| [Events](events.md) | what a listener hears |
| [Bench spec](bench-spec.md) | every key of the specs that `sglang-layered bench` reads |
| [Records](records.md) | what a benchmark leaves behind, and what is computed from it |
| [Policies and listeners](hooks.md) | the Python interface of `sglang_layered.hooks` |
| [Errors](errors.md) | what this package raises on purpose |
"""
FLAGS = """# Flags

They stand beside SGLang's own, on its command line and as arguments of `sglang.Engine`.
[Serve and tune](../flags.md) says which to set first.
"""
METRICS = """# Metrics

On SGLang's `/metrics`, with the prefix `sglang:`. [Watch](../metrics.md) defines the terms and says what
measuring costs.
"""
EVENTS = """# Events

Import them from `sglang_layered.hooks`. [Policies and listeners](../research.md#events) says when each comes.
"""
SPEC = """# Bench spec

What a TOML file for `sglang-layered bench` may hold. *Needed*: where its table is given.
[Benchmark](../benchmark.md) shows how to use it.
"""
RECORDS = """# Records

`sglang-layered bench run` writes a record: JSON, compressed where its name ends in `.gz`. Its keys are the
fields of `BenchRecord`, `Repetition` and `RequestTrace`, by the name in `Field(alias=...)` where there is
one. Metrics are computed later, by whoever reads the record; [Watch](../metrics.md#benchmark) defines them.
"""
HOOKS = """# Policies and listeners

What `sglang_layered.hooks` exports, beside the [events](events.md) and the [error](errors.md) `ConfigError`.
[The guide](../research.md) shows how to write them.
"""
ERRORS = """# Errors

Each message names the flag or field, the reason and the remedy.
"""
