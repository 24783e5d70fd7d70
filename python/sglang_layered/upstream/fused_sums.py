"""Sums over tensor ranks that SGLang makes in place for Kimi-K3; layered mode turns them off.

SGLang turns them on by itself on Blackwell. What attention gave is summed in one buffer of the process, of as
many rows as --chunked-prefill-size. In a group's layers attention runs twice: decode rows would be written
over the prompt's before anybody has read these, and both together may be more rows. The sums that all other
models and devices have give the same numbers. Upstream: srt/layers/k3_ar_fusion.py `symm_buffer`,
srt/models/kimi_k3.py.
"""

import logging
from typing import Any

from sglang.srt.configs.model_config import is_kimi_k3
from sglang.srt.environ import envs

from sglang_layered.upstream.releases import arguments

logger = logging.getLogger(__name__)


def asks_for_sums_in_place(model_config: Any) -> bool:
    """Whether this environment turns them on for this model (an SGLang ModelConfig)."""
    return bool(is_kimi_k3(model_config.hf_config) and envs.SGLANG_K3_AR_FUSION.get())


def keep_sums_apart(server_args: Any) -> None:
    """Turn them off where nothing is said, in this process and those that it starts; the model asks once."""
    if is_kimi_k3(arguments.model_config_of(server_args).hf_config) and not envs.SGLANG_K3_AR_FUSION.is_set():
        envs.SGLANG_K3_AR_FUSION.set(False)
        logger.warning(
            "Layered mode sets SGLANG_K3_AR_FUSION=0: sums over ranks in place, which SGLang has for Kimi-K3"
            " on Blackwell, hold one call of attention a layer and a layered step makes two"
        )
