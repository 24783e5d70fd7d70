"""What the metrics' flags refuse at start, in any prefill mode: with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.errors import UnsupportedError

OWN_ROUTING = ("flashinfer_trtllm", "flashinfer_mxfp4", "experimental_sgl_trtllm")


def refuse_observing(config: LayeredConfig, server_args: Any) -> None:
    """Refuse what cannot be measured with these arguments.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    for reason in _reasons(config, server_args):
        raise UnsupportedError(reason)


def _reasons(config: LayeredConfig, server_args: Any) -> Iterator[str]:
    if not server_args.enable_metrics:
        yield from _unread_limits(config)
    if config.enable_energy_metrics and server_args.nnodes > 1:
        yield (
            "--enable-energy-metrics reads the devices of its own node and --nnodes is"
            f" {server_args.nnodes}; leave it out and measure each node with a tool of its own"
        )
    if config.enable_expert_traffic_metrics:
        flag = "--enable-expert-traffic-metrics does not work with"
        for name, applies, reason in (
            (
                "--speculative-algorithm",
                server_args.speculative_algorithm is not None,
                "a verified step has several rows a request, which are not told apart",
            ),
            (
                f"--moe-a2a-backend {server_args.moe_a2a_backend}",
                server_args.moe_a2a_backend != "none",
                "a rank computes rows that other ranks chose experts for",
            ),
            (
                "--enable-dp-attention",
                server_args.enable_dp_attention,
                "a MoE layer computes the rows of all ranks",
            ),
            (
                "--enable-eplb or --ep-num-redundant-experts",
                server_args.enable_eplb or server_args.ep_num_redundant_experts > 0,
                "experts have copies whose bytes would count twice",
            ),
            (
                f"--moe-runner-backend {server_args.moe_runner_backend}",
                server_args.moe_runner_backend in OWN_ROUTING,
                "it chooses the experts inside its own kernel",
            ),
            (
                f"--layered-execution {config.layered_execution}",
                config.is_layered and _two_streams(config, server_args),
                "two CUDA streams would add to the same counters",
            ),
        ):
            if applies:
                yield f"{flag} {name}: {reason}; leave one of the two out"
        if not _has_experts(server_args):
            yield (
                f"--enable-expert-traffic-metrics: {server_args.model_path} has no Mixture-of-Experts layers;"
                " leave the flag out"
            )


def _unread_limits(config: LayeredConfig) -> Iterator[str]:
    """Limits that neither metrics nor the policy would look at."""
    for flag, limit_ms, capability in (
        ("--slo-ttft-ms", config.slo_ttft_ms, Capability.PACES_STEPS),
        ("--slo-tbt-ms", config.slo_tbt_ms, Capability.KEEPS_TBT_LIMIT),
    ):
        if limit_ms is not None and not config.policy_can(capability):
            yield (
                f"{flag} would only feed metrics; add --enable-metrics, or --prefill-mode layered with a"
                " --layered-policy that acts on it, as auto"
            )


def _two_streams(config: LayeredConfig, server_args: Any) -> bool:
    return config.layered_execution in ("concurrent", "auto") and server_args.device == "cuda"


def _has_experts(server_args: Any) -> bool:
    """False only for a model that is known to have none."""
    from sglang_layered.models.layer_shapes import read_layer_shapes

    layers = read_layer_shapes(server_args.get_model_config().hf_text_config)
    return not layers or any(layer.num_experts for layer in layers)
