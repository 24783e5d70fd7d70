"""What is refused at start: one table, a row a combination, with the reason and the remedy.

`scripts/refusals-list` writes FLAGS and the models' own table into the documents.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from sglang_layered.asked_for import Start
from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.core.policy import BALANCED_POLICY
from sglang_layered.errors import UnsupportedError
from sglang_layered.models.refused import (
    chooses_blocks,
    has_untested_drafts,
    has_untested_sparse_drafts,
    has_untold_images,
)
from sglang_layered.refused_flags import (
    FLAGS,
    GROUP_ATTENTION,
    LORA,
    OVERTAKING,
    RECURRENT,
    SPECULATION,
)

Applies = Callable[[Start], bool]


def _sums_in_place(start: Start) -> bool:
    from sglang_layered.upstream.fused_sums import asks_for_sums_in_place

    return asks_for_sums_in_place(start.model_config)


def _serves_in_rust(_: Start) -> bool:
    from sglang_layered.upstream.releases import arguments

    return arguments.serves_in_rust()


def _is_dense(start: Start) -> bool:
    """True only for a model that is known to have no experts."""
    from sglang_layered.models.layer_shapes import read_layer_shapes

    layers = read_layer_shapes(start.model_config.hf_text_config)
    return bool(layers) and not any(layer.num_experts for layer in layers)


def _cuts_blindly(start: Start) -> bool:
    """True where every plan of policy balanced would fail."""
    from sglang_layered.models.layer_shapes import served_layer_shapes

    if start.config.layered_policy != BALANCED_POLICY or start.config.layered_num_groups is not None:
        return False
    num_layers: int = start.model_config.num_hidden_layers
    return len(served_layer_shapes(start.model_config)) != num_layers


def _has_tree_of_states(start: Start) -> bool:
    """NGRAM's width is in the same field."""
    args = start.server_args
    is_tree = (args.speculative_eagle_topk or 1) > 1 and args.speculative_algorithm != "NGRAM"
    return is_tree and start.is_recurrent


def _with_flags(feature: str, flags: Mapping[str, str]) -> dict[str, Applies]:
    texts = {flag: f"{feature} does not work with {flag}: {says}" for flag, says in flags.items()}
    return {text: partial(Start.has, flag=flag) for flag, text in texts.items()}


LIMIT = (
    "would only feed metrics; add --enable-metrics, or --prefill-mode layered with a --layered-policy that"
    " acts on it, as auto"
)
TRAFFIC = "--enable-expert-traffic-metrics does not work with"
ONE = "leave one of the two out"
EXECUTION = "--layered-execution {config.layered_execution}:"
SPECULATING = "--speculative-algorithm in layered mode"
ATTENTION = "--layered-group-attention {config.group_attention}"
ORDERS = "--layered-policy {config.layered_policy}: it orders the queue (ORDERS_QUEUE), and"
PARKED = "--layered-max-parked {config.layered_max_parked}"
BACKENDS = "use --layered-group-attention backends"
OWN_ROUTING = ("flashinfer_trtllm", "flashinfer_mxfp4", "experimental_sgl_trtllm")

REFUSALS: Mapping[Applies, Mapping[str, Applies]] = {
    lambda start: not start.server_args.enable_metrics: {
        f"--slo-ttft-ms {LIMIT}": lambda start: start.has_unread("slo_ttft_ms", Capability.PACES_STEPS),
        f"--slo-tbt-ms {LIMIT}": lambda start: start.has_unread("slo_tbt_ms", Capability.KEEPS_TBT_LIMIT),
    },
    lambda start: start.config.enable_energy_metrics: {
        "--enable-energy-metrics reads the devices of its own node and --nnodes is {args.nnodes}; leave it"
        " out and measure each node with a tool of its own": lambda start: start.server_args.nnodes > 1,
        "--enable-energy-metrics does not work with --speculative-algorithm: a verified step hands on several"
        f" tokens a request, which are not told apart; {ONE}": lambda start: (
            start.server_args.speculative_algorithm is not None
        ),
    },
    lambda start: start.config.enable_expert_traffic_metrics: {
        f"{TRAFFIC} --moe-a2a-backend {{args.moe_a2a_backend}}: a rank computes rows that other ranks chose"
        f" experts for; {ONE}": lambda start: start.server_args.moe_a2a_backend != "none",
        f"{TRAFFIC} --enable-dp-attention: a MoE layer computes the rows of all ranks; {ONE}": lambda start: (
            start.has("--enable-dp-attention")
        ),
        f"{TRAFFIC} --enable-eplb or --ep-num-redundant-experts: experts have copies whose bytes would count"
        f" twice; {ONE}": lambda start: (
            start.server_args.enable_eplb or start.server_args.ep_num_redundant_experts > 0
        ),
        f"{TRAFFIC} --moe-runner-backend {{args.moe_runner_backend}}: it chooses the experts inside its own"
        f" kernel; {ONE}": lambda start: start.server_args.moe_runner_backend in OWN_ROUTING,
        f"{TRAFFIC} --layered-execution {{config.layered_execution}}: two CUDA streams would add to the same"
        f" counters; {ONE}": lambda start: (
            start.executes("concurrent", "auto") and start.server_args.device == "cuda"
        ),
        "--enable-expert-traffic-metrics: {args.model_path} has no Mixture-of-Experts layers; leave the flag"
        " out": _is_dense,
    },
    lambda start: start.config.is_layered: {
        "--layered-calibration-file {config.layered_calibration_file}: with --pp-size {args.pp_size} no"
        " policy hears what steps took; leave the file out": lambda start: (
            start.has("--pp-size") and start.config.layered_calibration_file is not None
        ),
        "--layered-listeners {start.shared_file}: with --pp-size {args.pp_size} every stage writes a file of"
        " its own; put {{pp}} into the path": lambda start: start.shared_file is not None,
        "--enable-hierarchical-cache: it is not tested with --pp-size {args.pp_size}; leave one out": (
            lambda start: start.has("--enable-hierarchical-cache") and start.has("--pp-size")
        ),
        "--enable-hierarchical-cache: keys of the indexer of {args.model_path} that come back from host"
        " memory are not tested beside a cohort; leave the flag out": lambda start: (
            start.has("--enable-hierarchical-cache") and chooses_blocks(start.model_config)
        ),
        "--enable-return-routed-experts: with --pp-size {args.pp_size} SGLang returns the ids of one stage's"
        " layers only; leave one out": (
            lambda start: start.has("--enable-return-routed-experts") and start.has("--pp-size")
        ),
        "--enable-return-routed-experts: SGLang keeps expert ids by KV slot, and a prefix that comes back"
        " from host memory gets other slots; leave it or --enable-hierarchical-cache out": (
            lambda start: (
                start.has("--enable-return-routed-experts") and start.has("--enable-hierarchical-cache")
            )
        ),
        **_with_flags("--prefill-mode layered", FLAGS),
        f"{EXECUTION} it needs two CUDA streams and the device is {{args.device}}; use sequential or fused": (
            lambda start: start.executes("concurrent") and start.server_args.device != "cuda"
        ),
        f"{EXECUTION} a pipeline stage runs prompt and decode rows together; use fused": lambda start: (
            start.has("--pp-size") and not start.executes("fused")
        ),
        f"{EXECUTION} with --tp-size above 1 two streams would share one communicator; use sequential or"
        " fused": lambda start: start.executes("concurrent") and start.server_args.tp_size > 1,
        f"{EXECUTION} with --tp-size above 1 each rank would choose by its own clock; name a strategy": (
            lambda start: start.executes("auto") and start.server_args.tp_size > 1
        ),
        "--layered-graph-group-rows: with --pp-size {args.pp_size} a stage captures no layered graphs; leave"
        " it out": lambda start: start.has("--pp-size") and start.config.layered_graph_group_rows is not None,
        "--layered-check-invariants {config.layered_check_invariants}: it checks one cohort in flight and"
        " pipeline stages have several; use basic with --pp-size above 1": lambda start: (
            start.has("--pp-size") and start.config.layered_check_invariants != "basic"
        ),
        "--layered-policy {config.layered_policy}: pipeline stages ask a policy for plans only, and it does"
        " not say that this is enough (RUNS_ON_STAGES); use token-target or balanced with --pp-size above"
        " 1": lambda start: start.has("--pp-size") and not start.config.policy_can(Capability.RUNS_ON_STAGES),
        f"{ORDERS} --schedule-policy {{args.schedule_policy}} would sort it anew; use fcfs": lambda start: (
            start.server_args.schedule_policy != "fcfs" and start.orders_queue
        ),
        f"{ORDERS} --enable-priority-scheduling would sort it anew; leave the flag out: the policy sees each"
        " request's priority": lambda start: start.has("--enable-priority-scheduling") and start.orders_queue,
        f"{ORDERS} --lora-drain-wait-threshold holds back others of it; leave the flag out": lambda start: (
            start.has("--lora-drain-wait-threshold") and start.orders_queue
        ),
        "--prefill-mode layered cannot serve {args.model_path}: {start.model_refusal}": lambda start: (
            start.model_refusal is not None
        ),
        "--prefill-mode layered cannot serve {args.model_path} with {start.untried_sparse_attention}: tokens"
        " of its sparse attention were compared on flashmla_sparse and fa3 only; use a Hopper GPU's defaults"
        " (leave these flags out and --kv-cache-dtype at bfloat16) or serve it in chunked mode": (
            lambda start: start.untried_sparse_attention is not None
        ),
        "SGLANG_RUST_SERVER=1: HTTP, tokenizer and streams then run in Rust inside the scheduler's process,"
        " which is not tested in layered mode; unset it": _serves_in_rust,
        "SGLANG_K3_AR_FUSION=1: sums over ranks in place hold one call of attention a layer and a layered"
        " step makes two; unset it": _sums_in_place,
        "--layered-policy balanced: it cuts by the bytes of the layers, and those of {args.model_path} are"
        " not known; use token-target": _cuts_blindly,
    },
    lambda start: start.config.is_layered and start.has("--enable-lora"): {
        **_with_flags("--enable-lora in layered mode", LORA),
        "--enable-lora in layered mode does not work with --layered-execution {config.layered_execution}:"
        " two CUDA streams with adapters are not tested; use fused or sequential": lambda start: (
            start.executes("concurrent", "auto") and start.server_args.device == "cuda"
        ),
    },
    lambda start: start.speculates: {
        **_with_flags(SPECULATING, SPECULATION),
        f"{SPECULATING} does not work with --layered-execution {{config.layered_execution}}: decode rows are"
        " drafted and verified in steps of SGLang's own; use sequential": lambda start: (
            start.executes("concurrent") or (start.executes("auto") and start.server_args.device != "cpu")
        ),
        f"{SPECULATING} does not work with --layered-policy {{config.layered_policy}}: it says who decodes"
        " (CHOOSES_DECODES), and no draft decodes a part of a batch; use another policy": lambda start: (
            start.config.policy_can(Capability.CHOOSES_DECODES)
        ),
        f"{SPECULATING} does not work with {ATTENTION}: decode rows run apart from the prompt's;"
        f" {BACKENDS}": lambda start: start.config.group_attention != "backends",
        f"{SPECULATING} does not work with --attention-backend torch_native: it verifies no drafts; use"
        " cpu_paged on a CPU, another backend on a GPU": lambda start: (
            "torch_native" in start.attention_backends
        ),
        f"{SPECULATING} cannot serve {{args.model_path}} with this draft model: what it reads of images is"
        " not tested beside a cohort in this family; use NGRAM, or leave the flag out": lambda start: (
            has_untold_images(start.model_config, start.server_args.speculative_algorithm)
        ),
        f"{SPECULATING} cannot serve {{args.model_path}} with {{args.speculative_algorithm}}: behind an"
        " indexer SGLang verifies chains of drafts, and those of the model's own MTP layer alone are tested"
        " beside a cohort; use EAGLE without --speculative-draft-model-path, or leave the flag"
        " out": lambda start: has_untested_sparse_drafts(start.model_config, start.server_args),
        f"{SPECULATING} cannot serve {{args.model_path}}: drafts that attend to blocks of tokens are not"
        " tested beside a cohort; leave the flag out": lambda start: chooses_blocks(start.model_config),
        f"{SPECULATING} does not work with --mamba-radix-cache-strategy extra_buffer_lazy: slots that it"
        " takes for states on the way are not tested beside a cohort; use extra_buffer": lambda start: (
            start.server_args.mamba_radix_cache_strategy == "extra_buffer_lazy" and start.is_recurrent
        ),
        f"{SPECULATING} does not work with --enable-streaming-session for {{args.model_path}}: SGLang keeps"
        " states of recurrent layers behind drafts that an answer was cut before, and answers the next turn"
        f" wrong; {ONE}": lambda start: start.has("--enable-streaming-session") and start.is_recurrent,
        f"{SPECULATING} does not work with --speculative-eagle-topk {{args.speculative_eagle_topk}} for"
        " {args.model_path}: trees over recurrent layers are tested with NGRAM alone;"
        " use 1": _has_tree_of_states,
        f"{SPECULATING} cannot serve {{args.model_path}} with {{args.speculative_algorithm}}: states of"
        " recurrent layers that a verified step takes back are tested beside a cohort with NGRAM and EAGLE"
        " alone, and in some families; leave the flag out": lambda start: has_untested_drafts(
            start.model_config, start.server_args.speculative_algorithm
        ),
    },
    lambda start: start.config.is_layered and any(map(start.has, RECURRENT)) and start.is_recurrent: (
        _with_flags("--prefill-mode layered with recurrent layers", RECURRENT)
    ),
    lambda start: start.config.is_layered and start.config.layered_max_parked > 0: {
        **_with_flags(PARKED, OVERTAKING),
    },
    lambda start: start.config.is_layered and start.config.group_attention != "backends": {
        f"{ATTENTION} does not work with an attention backend other than flashinfer: it runs FlashInfer's"
        " kernels on the tables of that backend; add --attention-backend flashinfer": lambda start: (
            set(start.attention_backends) != {"flashinfer"}
        ),
        **_with_flags(ATTENTION, GROUP_ATTENTION),
        f"{ATTENTION} cannot serve {{args.model_path}}: its attention is"
        f" {{start.model_config.attention_arch.name}}, which has kernels of its own;"
        f" {BACKENDS}": lambda start: start.model_config.attention_arch.name != "MHA",
        f"{ATTENTION} cannot serve {{args.model_path}}: it has recurrent layers; {BACKENDS}": lambda start: (
            start.is_recurrent
        ),
        f"{ATTENTION} cannot serve {{args.model_path}}: it has attention sinks; {BACKENDS}": lambda start: (
            start.model_config.has_attention_sinks
        ),
        f"{ATTENTION} cannot serve {{args.model_path}}: its sliding-window layers have a KV pool of their own"
        f" (see --disable-hybrid-swa-memory); {BACKENDS}": lambda start: start.model_config.is_hybrid_swa,
    },
}
"""Where each applies, by what asks for it: messages in order, with values of the start in braces."""


def refuse(config: LayeredConfig, server_args: Any) -> None:
    """Refuse the first combination of flags, or property of the model, that cannot be served or measured.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    start = Start(config, server_args)
    found = next(_applying(start), None)
    if found is not None:
        raise UnsupportedError(found[0].format(start=start, config=config, args=server_args))


def refuse_change(before: LayeredConfig, after: LayeredConfig, server_args: Any) -> None:
    """Refuse on a running server what a change of its settings would bring.

    Raises:
        UnsupportedError: with the flag, the reason and the remedy.
    """
    start, known = Start(after, server_args), set(_applying(Start(before, server_args)))
    found = next((row for row in _applying(start) if row not in known), None)
    if found is not None:
        raise UnsupportedError(found[0].format(start=start, config=after, args=server_args))


def _applying(start: Start) -> Iterator[tuple[str, Applies]]:
    for asked, rows in REFUSALS.items():
        if asked(start):
            yield from ((text, applies) for text, applies in rows.items() if applies(start))
