"""Lets a CPU server draft with a model, at the speed of our attention.

SGLANG_EXTERNAL_MODEL_PACKAGE names this. SGLang imports it behind its own models, in every process. Our
attention then stands in the place of `--attention-backend torch_native`, with drafts and without, so that
servers that are compared attend alike. It has no model.
"""

from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang_layered_kernels.cpu.draft_attention import use_drafts

from sglang_layered.upstream.cpu_attention import CpuAttention
from sglang_layered.upstream.cpu_choice import CPU_ATTENTION


def _prompts(factory: DraftBackendFactory) -> CpuAttention:
    return CpuAttention(factory.draft_model_runner)


use_drafts()
ATTENTION_BACKENDS["torch_native"] = ATTENTION_BACKENDS[CPU_ATTENTION]
DraftBackendFactory._create_triton_prefill_backend = _prompts
