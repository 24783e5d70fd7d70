"""Which kinds of drafts are checked, on which families."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_models import drafted_model

from families_on_cpu import FLAGS, RECURRENT

CHAIN = {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4}
TREE = {"speculative_num_draft_tokens": 4, "speculative_ngram_max_bfs_breadth": 2}
SEVERAL = {"enable_multi_layer_eagle": True}  # SGLang sets it for MiMo-V2
BRANCHES = {"speculative_num_steps": 3, "speculative_eagle_topk": 2, "speculative_num_draft_tokens": 6}


@dataclass(frozen=True)
class Case:
    """A family, and a kind of draft that is made for it."""

    algorithm: str
    arch: str = "qwen3_moe"
    kind: str | None = None
    flags: dict[str, Any] = field(default_factory=lambda: CHAIN)
    is_thorough: bool = False  # without overlap too, and with everything that may happen to requests
    page_size: int = 1  # of the KV pool, with overlap

    @property
    def is_recurrent(self) -> bool:
        return RECURRENT.items() <= FLAGS.get(self.arch, {}).items()

    @property
    def has_images(self) -> bool:
        return self.arch == "qwen3_5_moe"

    @property
    def target(self) -> Path:
        return drafted_model(self.arch, self.kind)[0]

    @property
    def speculates(self) -> dict[str, Any]:
        draft = drafted_model(self.arch, self.kind)[1]
        named = {} if draft is None else {"speculative_draft_model_path": str(draft)}
        return {"speculative_algorithm": self.algorithm, **named, **self.flags}


CASES = {
    "NGRAM": Case("NGRAM", flags=TREE, is_thorough=True),
    "STANDALONE": Case("STANDALONE", kind="standalone"),
    "EAGLE": Case("EAGLE", kind="eagle", flags=BRANCHES),
    "EAGLE of MTP": Case("EAGLE", "deepseek_v3", "mtp", page_size=64),
    "EAGLE of GLM's MTP": Case("EAGLE", "glm4_moe", "mtp"),
    "EAGLE of MiMo's MTP": Case("EAGLE", "mimo", "mtp"),
    "EAGLE of MiMo-V2's MTP layers": Case("EAGLE", "gpt_oss", "mtp-layers", CHAIN | SEVERAL),
    "EAGLE3": Case("EAGLE3", kind="eagle3", is_thorough=True, page_size=16),
    "EAGLE3 of GPT-OSS": Case("EAGLE3", "gpt_oss", "eagle3"),
    "NGRAM of Qwen3-Next": Case("NGRAM", "qwen3_next", flags=TREE),
    "EAGLE of Qwen3-Next's MTP": Case("EAGLE", "qwen3_next", "mtp"),
    "EAGLE of Qwen3.5's MTP": Case("EAGLE", "qwen3_5_moe", "mtp", is_thorough=True),
    "EAGLE of Nemotron-H's MTP": Case("EAGLE", "nemotron_h", "mtp", is_thorough=True),
}
