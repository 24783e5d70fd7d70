"""What layered mode refuses at start: one table row a feature, with the flag, the reason and the remedy.

Models have a table of their own, `model_refusals`. `scripts/refusals-list` writes both into the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.errors import UnsupportedError
from sglang_layered.model_refusals import attention_refusal, model_refusal


@dataclass(frozen=True, slots=True)
class Refusal:
    """A combination that layered mode does not serve."""

    flag: str
    applies: Callable[[Any], bool]
    reason: str
    remedy: str

    def message(self, refused: str = "--prefill-mode layered") -> str:
        """The one line a user sees."""
        return f"{refused} does not work with {self.flag}: {self.reason}; {self.remedy}"


def _set(name: str) -> Callable[[Any], bool]:
    return lambda args: bool(getattr(args, name, None))


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda args: (getattr(args, name, None) or 1) > 1


ROWS_OVER_RANKS = "its ranks agree on the rows of one batch a step and a layered step runs two"
FOREIGN_CACHE = "it keeps KV in a cache of its own, which may take slots that a cohort has filled half"
# Their loaders choose the method by themselves, after these checks; that of "gguf" shows as --quantization.
QUANTIZING_LOADERS = ("bitsandbytes", "flash_rl")

FLAG_REFUSALS = (
    Refusal(
        "--speculative-algorithm",
        _set("speculative_algorithm"),
        "a draft model verifies whole steps and a cohort spreads over several",
        "leave the flag out",
    ),
    Refusal(
        "--disaggregation-mode",
        lambda args: args.disaggregation_mode not in (None, "null"),
        "prefill and decode run on different servers there, so there is no decode to keep going",
        "use 'null'",
    ),
    Refusal(
        "--enable-pdmux",
        _set("enable_pdmux"),
        "it has a prefill scheduler of its own",
        "choose one of the two",
    ),
    Refusal(
        "--enable-two-batch-overlap",
        _set("enable_two_batch_overlap"),
        "it splits the batch that a layered step composes",
        "leave the flag out",
    ),
    Refusal(
        "--enable-single-batch-overlap",
        _set("enable_single_batch_overlap"),
        "it reorders the work inside a layer range",
        "leave the flag out",
    ),
    Refusal(
        "--enable-mixed-chunk",
        _set("enable_mixed_chunk"),
        "layered mode already runs decode in every step",
        "leave the flag out",
    ),
    Refusal(
        "--enable-dp-attention",
        _set("enable_dp_attention"),
        "its ranks must agree on one forward mode per step",
        "use --dp-size replicas without it",
    ),
    Refusal("--attn-cp-size", _above_one("attn_cp_size"), "context parallel cuts the prompt rows", "use 1"),
    Refusal("--dcp-size", _above_one("dcp_size"), "context parallel cuts the KV pool", "use 1"),
    Refusal(
        "--enable-prefill-cp",
        _set("enable_prefill_cp"),
        "context parallel cuts the prompt rows",
        "leave it out",
    ),
    Refusal(
        "--dllm-algorithm", _set("dllm_algorithm"), "diffusion models have no decode step", "leave it out"
    ),
    Refusal(
        "--is-embedding", _set("is_embedding"), "embedding models do not decode", "serve it in chunked mode"
    ),
    Refusal(
        "--enable-hisparse",
        _set("enable_hisparse"),
        "it moves KV between prefill and decode itself",
        "leave it out",
    ),
    Refusal(
        "--enable-unified-memory",
        _set("enable_unified_memory"),
        "it moves KV while a forward runs and knows nothing of a cohort's",
        "leave it out",
    ),
    Refusal(
        "--enable-lora",
        lambda args: bool(args.enable_lora or args.lora_paths),
        "adapters are prepared per batch and a layered step runs two",
        "serve merged weights",
    ),
    Refusal(
        "--enable-hierarchical-cache",
        _set("enable_hierarchical_cache"),
        "loading KV back layer by layer is not tied to layer groups yet",
        "leave the flag out",
    ),
    Refusal(
        "--enable-return-routed-experts",
        _set("enable_return_routed_experts"),
        "expert ids are gathered per forward and a prompt takes several",
        "leave the flag out",
    ),
    Refusal(
        "--torchao-config",
        _set("torchao_config"),
        "it quantizes weights after they are loaded, which is not tested in layered mode yet",
        "leave the flag out",
    ),
    Refusal(
        "--modelopt-quant",
        _set("modelopt_quant"),
        "it quantizes weights while they are loaded, which is not tested in layered mode yet",
        "leave the flag out",
    ),
    Refusal(
        "--load-format",
        lambda args: args.load_format in QUANTIZING_LOADERS,
        "this loader quantizes weights whatever the model says, which is not tested in layered mode yet",
        "use 'auto' with bf16, fp16 or fp32 weights",
    ),
    Refusal(
        "--kt-weight-path",
        _set("kt_weight_path"),
        "it computes quantized experts on the CPU, which is not tested in layered mode yet",
        "leave the flag out",
    ),
    Refusal(
        "--quantization",
        _set("quantization"),
        "quantized experts are not tested in layered mode yet",
        "serve bf16, fp16 or fp32 weights",
    ),
    Refusal(
        "--moe-a2a-backend",
        lambda args: (args.moe_a2a_backend or "none") != "none",
        ROWS_OVER_RANKS,
        "use 'none'",
    ),
    Refusal("--moe-dense-tp-size", _set("moe_dense_tp_size"), ROWS_OVER_RANKS, "leave the flag out"),
    Refusal("--enable-lmcache", _set("enable_lmcache"), FOREIGN_CACHE, "leave the flag out"),
    Refusal("--enable-flexkv", _set("enable_flexkv"), FOREIGN_CACHE, "leave the flag out"),
    Refusal("--radix-cache-backend", _set("radix_cache_backend"), FOREIGN_CACHE, "leave the flag out"),
    Refusal(
        "--enable-forward-pass-metrics",
        _set("enable_forward_pass_metrics"),
        "they count a prompt in one forward and it takes several",
        "use --enable-metrics",
    ),
)


GROUP_ATTENTION_REFUSALS = (
    Refusal(
        "--pp-size", _above_one("pp_size"), "its stages run SGLang's attention backends", "use 'backends'"
    ),
    Refusal(
        "an attention backend other than flashinfer",
        lambda args: set(args.get_attention_backends()) != {"flashinfer"},
        "it runs FlashInfer's kernels on the tables of that backend",
        "add --attention-backend flashinfer",
    ),
    Refusal(
        "--kv-cache-dtype",
        lambda args: args.kv_cache_dtype not in ("auto", "bf16", "bfloat16"),
        "its kernels get no scales for a quantized KV cache",
        "use 'auto'",
    ),
    Refusal(
        "--enable-deterministic-inference",
        _set("enable_deterministic_inference"),
        "it lets FlashInfer split the keys by load",
        "leave the flag out",
    ),
    Refusal("--enable-mis", _set("enable_mis"), "its masks know no items", "leave the flag out"),
)


def refuse_unsupported(server_args: Any) -> None:
    """Refuse the first flag or model property that layered mode cannot serve.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    for refusal in FLAG_REFUSALS:
        if refusal.applies(server_args):
            raise UnsupportedError(refusal.message())
    reason = execution_refusal(server_args)
    if reason is not None:
        raise UnsupportedError(f"--layered-execution {server_args.layered_execution}: {reason}")
    if server_args.pp_size > 1 and server_args.layered_check_invariants != "basic":
        raise UnsupportedError(
            f"--layered-check-invariants {server_args.layered_check_invariants}: it checks one cohort in"
            " flight and pipeline stages have several; use basic with --pp-size above 1"
        )
    config = LayeredConfig.from_server_args(server_args)
    if server_args.pp_size > 1 and not config.policy_can(Capability.RUNS_ON_STAGES):
        raise UnsupportedError(
            f"--layered-policy {config.layered_policy}: pipeline stages ask a policy for plans only, and it"
            " does not say that this is enough (RUNS_ON_STAGES); use token-target or balanced with --pp-size"
            " above 1"
        )
    model_config = server_args.get_model_config()
    reason = model_refusal(model_config)
    if reason is None:
        reason = attention_refusal(model_config, server_args.get_attention_backends())
    if reason is not None:
        raise UnsupportedError(f"--prefill-mode layered cannot serve {server_args.model_path}: {reason}")


def execution_refusal(server_args: Any) -> str | None:
    """Why the asked execution cannot run with these arguments, or None."""
    wanted = server_args.layered_execution
    if wanted == "concurrent" and server_args.device != "cuda":
        return f"it needs two CUDA streams and the device is {server_args.device}; use sequential or fused"
    if server_args.pp_size > 1 and wanted != "fused":
        return "a pipeline stage runs prompt and decode rows together; use fused"
    if server_args.tp_size == 1:
        return None
    if wanted == "concurrent":
        return "with --tp-size above 1 two streams would share one communicator; use sequential or fused"
    if wanted == "auto":
        return "with --tp-size above 1 each rank would choose by its own clock; name a strategy"
    return None


def refuse_group_attention(kind: str, server_args: Any) -> None:
    """Refuse 'pair' or 'pod' where FlashInfer's kernels cannot stand in for SGLang's attention backend.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    if kind == "backends":
        return
    flag = f"--layered-group-attention {kind}"
    for refusal in GROUP_ATTENTION_REFUSALS:
        if refusal.applies(server_args):
            raise UnsupportedError(refusal.message(flag))
    reason = group_attention_refusal(server_args.get_model_config())
    if reason is not None:
        raise UnsupportedError(
            f"{flag} cannot serve {server_args.model_path}: {reason}; use --layered-group-attention backends"
        )


def group_attention_refusal(model_config: Any) -> str | None:
    """Why FlashInfer's paged kernels cannot serve this model (an SGLang ModelConfig), or None."""
    if model_config.attention_arch.name != "MHA":
        return f"its attention is {model_config.attention_arch.name}, which has kernels of its own"
    if model_config.has_attention_sinks:
        return "it has attention sinks"
    if model_config.is_hybrid_swa:
        return "its sliding-window layers have a KV pool of their own (see --disable-hybrid-swa-memory)"
    return None
