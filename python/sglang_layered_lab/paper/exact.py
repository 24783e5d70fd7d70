"""What chunks would cost on a CPU with an attention that computes no row twice: a fitted model's word.

SGLang's `torch_native` attention computes a chunk's cached rows again, so chunks look worse on a CPU than
they are on a GPU; prompts that run whole, or in layer groups, are not touched by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sglang_layered_lab.bench.tables import to_markdown
from sglang_layered_lab.cost.saved import SavedFit
from sglang_layered_lab.cost.ways import Beside, Way

FIELDS = ("ttft_s", "worst_gap_s")
HEADER = ("way", "decodes", "TTFT ms, this attention", "exact", "worst gap ms, this attention", "exact")


def exact_attention_table(
    saved: SavedFit, ways: Sequence[Way], prompt_tokens: int, decode_rows: Sequence[int], context_tokens: int
) -> str:
    """TTFT and worst gap of a prompt beside decodes, as the machine has it and with exact attention."""
    exact = replace(saved, model=replace(saved.model, attention="exact"))
    rows = []
    for num_rows in decode_rows:
        for way in ways:
            beside = Beside(num_rows, context_tokens)
            seen = [each.predict(way, prompt_tokens, beside) for each in (saved, exact)]
            ttft, gap = ([f"{1e3 * getattr(each, name):.0f}" for each in seen] for name in FIELDS)
            rows.append((way.name, str(num_rows), *ttft, *gap))
    return to_markdown(HEADER, rows)
