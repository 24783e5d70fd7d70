"""Qwen3-MoE for `--load-format dummy` with the routers of a folder that `calibrate-router --dummy` wrote."""

import logging
from pathlib import Path

from sglang.srt.models import qwen3_moe
from sglang.srt.runtime_context import get_context

from sglang_layered_lab.models.router_dummy import FILLED, bias_of, fill

logger = logging.getLogger(__name__)


class Qwen3MoeForCausalLM(qwen3_moe.Qwen3MoeForCausalLM):
    """Upstream: srt/models/qwen3_moe.py. Every loader that reads no weights calls `post_load_weights`."""

    def post_load_weights(self) -> None:
        """Fill what routing depends on.

        Raises:
            ModelRecipeError: the model's folder has no bias for dummy weights.
        """
        folder = Path(get_context().server_args.model_path)
        embedding = getattr(self.model, "embed_tokens", None)
        shard = getattr(embedding, "shard_indices", None)
        first_token_id = 0 if shard is None else shard.org_vocab_start_index
        edited = fill(dict(self.named_parameters()), bias_of(folder), first_token_id=first_token_id)
        logger.info("%s of %s: %s", FILLED, folder, dict(edited))


EntryClass = Qwen3MoeForCausalLM
