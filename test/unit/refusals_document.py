"""What layered mode refuses, and its flags: tables in documents, between markers, made from the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flags_document import any_mode_table, layered_table
from sglang_layered.models.quantization import METHODS
from sglang_layered.models.refused import MODELS
from sglang_layered.refused_flags import FLAGS, GROUP_ATTENTION, LORA, OVERTAKING, RECURRENT, SPECULATION

REPO = Path(__file__).resolve().parents[2]
MARKED = r"(<!-- {0}: begin[^>]*-->\n).*?(<!-- {0}: end -->)"
BESIDE = {
    "`--speculative-algorithm`": SPECULATION,
    "`--enable-lora`": LORA,
    "recurrent layers": RECURRENT,
    "`--layered-max-parked`": OVERTAKING,
    "`--layered-group-attention` pair, pod": GROUP_ATTENTION,
}


def models_table() -> str:
    """Kinds of models."""
    return "\n".join(["| models | why | instead |", "|---|---|---|", *_models()]) + "\n"


def whole_table() -> str:
    """Flags, then kinds of models."""
    head = ["| refused | why | instead |", "|---|---|---|"]
    flags = [f"| `{flag}` | {cells(says)} |" for flag, says in FLAGS.items()]
    return "\n".join([*head, *flags, *_models()]) + "\n"


def pairs_table() -> str:
    """Flags that are refused beside a feature."""
    head = ["| beside | refused | why | instead |", "|---|---|---|---|"]
    pairs = [
        f"| {feature} | `{flag}` | {cells(says)} |"
        for feature, flags in BESIDE.items()
        for flag, says in flags.items()
    ]
    return "\n".join([*head, *pairs]) + "\n"


def _models() -> Iterator[str]:
    for kind, (_, says) in MODELS.items():
        yield f"| {kind} | the model {cells(says)} |"


def methods_table() -> str:
    """Every method of quantization, and what layered mode does with it."""
    return "\n".join(["| method | layered mode | how it is known |", "|---|---|---|", *_methods()]) + "\n"


def _methods() -> Iterator[str]:
    for name, method in METHODS.items():
        if method.refusal is not None:
            yield f"| `{name}` | refused: {method.refusal.replace('; ', '. Instead: ')} | |"
        elif method.sharing is None:
            yield f"| `{name}` | served | {method.evidence} |"
        else:
            where = method.sharing.where
            warned = f"with a warning {where if where == 'always' else f'where {where}'}"
            yield f"| `{name}` | served; {warned}: {method.sharing.text} | {method.evidence} |"


def cells(says: str) -> str:
    """Reason and remedy, which a semicolon parts."""
    return " | ".join(says.rsplit("; ", 1))


# Documents, the names of their places and what stands there.
TABLES = {
    "docs/refused.md": {"refusals": whole_table, "pairs": pairs_table},
    "docs/flags.md": {"any-mode": any_mode_table, "layered": layered_table},
    "docs/models.md": {"refusals": models_table, "quantization": methods_table},
}


def written(document: str) -> str:
    """The text of a document with its tables as the code has them now."""
    text = (REPO / document).read_text()
    for name, make in TABLES[document].items():
        place = re.compile(MARKED.format(name), re.DOTALL)
        text, count = place.subn(lambda match: match[1] + make() + match[2], text)  # noqa: B023
        if count != 1:
            raise ValueError(f"{document} has {count} places for the table of {name}")
    return text


def main() -> None:
    """Write the documents."""
    for document in TABLES:
        (REPO / document).write_text(written(document))


if __name__ == "__main__":
    main()
