"""What layered mode refuses, as tables in the documents, between their markers, made from the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sglang_layered.model_refusals import MODEL_REFUSALS
from sglang_layered.refusals import FLAG_REFUSALS

REPO = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"(<!-- refusals: begin[^>]*-->\n).*?(<!-- refusals: end -->)", re.DOTALL)


def models_table() -> str:
    """Kinds of models."""
    return "\n".join(["| models | why | instead |", "|---|---|---|", *_models()]) + "\n"


def whole_table() -> str:
    """Flags, then kinds of models."""
    head = ["| refused | why | instead |", "|---|---|---|"]
    flags = [f"| `{item.flag}` | {item.reason} | {item.remedy} |" for item in FLAG_REFUSALS]
    return "\n".join([*head, *flags, *_models()]) + "\n"


def _models() -> Iterator[str]:
    for item in MODEL_REFUSALS:
        yield f"| {item.models} | the model {item.reason} | {item.remedy} |"


TABLES = {"README.md": whole_table, "docs/models.md": models_table}


def written(document: str) -> str:
    """The text of a document with its table as the code has it now."""
    text, table = (REPO / document).read_text(), TABLES[document]()
    text, count = MARKED.subn(lambda match: match[1] + table + match[2], text)
    if count != 1:
        raise ValueError(f"{document} has {count} places for the table of refusals")
    return text


def main() -> None:
    """Write both documents."""
    for document in TABLES:
        (REPO / document).write_text(written(document))


if __name__ == "__main__":
    main()
