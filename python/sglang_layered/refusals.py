"""What is refused at start: one table, a row a combination, with the reason and the remedy.

`scripts/refusals-list` writes FLAGS and the models' own table into the documents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sglang_layered.config import LayeredConfig
from sglang_layered.core.capability import Capability
from sglang_layered.core.policy import BALANCED_POLICY
from sglang_layered.errors import UnsupportedError
from sglang_layered.models.refused import has_recurrent_layers, model_refusal, untried_sparse_attention


@dataclass(frozen=True, slots=True)
class Start:
    """What a server is started with; its model is read when a row asks for it."""

    config: LayeredConfig
    server_args: Any

    @property
    def model_config(self) -> Any:
        """SGLang's ModelConfig."""
        return self.server_args.get_model_config()

    def has(self, flag: str) -> bool:
        """True when the arguments ask for what a flag is for."""
        value = getattr(self.server_args, flag.removeprefix("--").replace("-", "_"), None)
        if flag == "--enable-lora":
            value = value or getattr(self.server_args, "lora_paths", None)
        return bool(value) and not UNASKED.get(flag, lambda _: False)(value)

    @property
    def shared_file(self) -> str | None:
        """A listener's file that several pipeline stages would write."""
        specs = self.config.layered_listeners or () if self.has("--pp-size") else ()
        return next((spec for spec in specs if "=" in spec and "{pp}" not in spec), None)

    @property
    def is_recurrent(self) -> bool:
        """True for a model that keeps a state per request and layer."""
        return has_recurrent_layers(self.model_config)

    @property
    def model_refusal(self) -> str | None:
        """Why layered mode cannot serve the model."""
        return model_refusal(self.model_config, self.server_args.get_attention_backends())

    @property
    def untried_sparse_attention(self) -> str | None:
        """The flags that take a model with an indexer to attention on which no tokens were compared."""
        return untried_sparse_attention(self.model_config, self.server_args)

    def executes(self, *names: str) -> bool:
        """True when layered steps are asked to run in one of these ways."""
        return self.config.is_layered and self.config.layered_execution in names

    def has_unread(self, limit: str, capability: Capability) -> bool:
        """True for a limit that no policy would act on."""
        return getattr(self.config, limit) is not None and not self.config.policy_can(capability)


Applies = Callable[[Start], bool]

RANKS = "its ranks agree on the rows of one batch a step and a layered step runs two"
FOREIGN_CACHE = "it keeps KV in a cache of its own, which may take slots that a cohort has filled half"

FLAGS: Mapping[str, str] = {
    "--speculative-algorithm": "a draft model verifies whole steps and a cohort spreads over several; leave"
    " the flag out",
    "--disaggregation-mode": "prefill and decode run on different servers there, so there is no decode to"
    " keep going; use 'null'",
    "--enable-pdmux": "it has a prefill scheduler of its own; choose one of the two",
    "--language-only": "embeddings of images come from other servers there, and only text is served; leave"
    " the flag out",
    "--encoder-only": "an encoder has no decode step; serve it in chunked mode",
    "--enable-two-batch-overlap": "it splits the batch that a layered step composes; leave the flag out",
    "--enable-single-batch-overlap": "it reorders the work inside a layer range; leave the flag out",
    "--enable-mixed-chunk": "layered mode already runs decode in every step; leave the flag out",
    "--enable-dp-attention": "its ranks must agree on one forward mode per step; use --dp-size replicas"
    " without it",
    "--attn-cp-size": "context parallel cuts the prompt rows; use 1",
    "--dcp-size": "context parallel cuts the KV pool; use 1",
    "--enable-prefill-cp": "context parallel cuts the prompt rows; leave it out",
    "--dllm-algorithm": "diffusion models have no decode step; leave it out",
    "--is-embedding": "embedding models do not decode; serve it in chunked mode",
    "--enable-hisparse": "it moves KV between prefill and decode itself; leave it out",
    "--enable-return-indexer-topk": "prompt and decode rows of a step write the same rows of SGLang's buffer;"
    " leave the flag out",
    "--enable-unified-memory": "it moves KV while a forward runs and knows nothing of a cohort's; leave it"
    " out",
    "--torchao-config": "it quantizes weights after they are loaded, which is not tested in layered mode yet;"
    " leave the flag out",
    "--modelopt-quant": "it quantizes weights while they are loaded, which is not tested in layered mode yet;"
    " leave the flag out",
    "--load-format": "this loader quantizes weights whatever the model says, which is not tested in layered"
    " mode yet; use 'auto' with bf16, fp16 or fp32 weights",
    "--kt-weight-path": "it computes quantized experts on the CPU, which is not tested in layered mode yet;"
    " leave the flag out",
    "--moe-a2a-backend": f"{RANKS}; use 'none'",
    "--moe-dense-tp-size": f"{RANKS}; leave the flag out",
    "--enable-lmcache": f"{FOREIGN_CACHE}; leave the flag out",
    "--enable-flexkv": f"{FOREIGN_CACHE}; leave the flag out",
    "--radix-cache-backend": f"{FOREIGN_CACHE}; leave the flag out",
    "--enable-forward-pass-metrics": "they count a prompt in one forward and it takes several; use"
    " --enable-metrics",
}
"""What layered mode does not work with: the reason, and after a semicolon the remedy."""

LORA: Mapping[str, str] = {
    "--enable-lora-overlap-loading": "a stream of its own writes adapters beside a cohort, which is not"
    " tested; leave the flag out",
    "--pp-size": "stages have several cohorts in flight, whose adapters are not counted together; use 1",
    "--tp-size": "cut adapters are not tested beside a cohort; use 1",
}
"""What adapters do not work with in layered mode: the reason, and after a semicolon the remedy."""

RECURRENT: Mapping[str, str] = {
    "--pp-size": "states of several stages are not tested beside a cohort; use 1",
    "--enable-hierarchical-cache": "states that come back from host memory are not tested beside a cohort;"
    " leave the flag out",
    "--enable-lora": "adapters of these layers are not tested beside a cohort; serve merged weights",
    "--enable-int8-mamba-checkpoint": "rounded states are not tested beside a cohort; leave the flag out",
    "--enable-linear-replayssm": "states late by some tokens are not tested; leave the flag out",
}
"""What models with recurrent layers do not work with: the reason, and after a semicolon the remedy."""

# Values, beside none and false ones, that ask for nothing of what a flag is refused for. The two loaders
# choose the quantization by themselves, after these checks; that of "gguf" shows as --quantization.
UNASKED: Mapping[str, Callable[[Any], bool]] = {
    "--disaggregation-mode": lambda value: value == "null",
    "--moe-a2a-backend": lambda value: value == "none",
    "--attn-cp-size": lambda value: value == 1,
    "--dcp-size": lambda value: value == 1,
    "--pp-size": lambda value: value == 1,
    "--tp-size": lambda value: value == 1,
    "--load-format": lambda value: value not in ("bitsandbytes", "flash_rl"),
    "--kv-cache-dtype": lambda value: value in ("auto", "bf16", "bfloat16"),
}


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


def _with_flags(feature: str, flags: Mapping[str, str]) -> dict[str, Applies]:
    texts = {flag: f"{feature} does not work with {flag}: {says}" for flag, says in flags.items()}
    return {text: partial(Start.has, flag=flag) for flag, text in texts.items()}


# What FlashInfer's kernels in the place of SGLang's attention backend do not work with.
GROUP_ATTENTION: Mapping[str, str] = {
    "--pp-size": "its stages run SGLang's attention backends; use 'backends'",
    "--kv-cache-dtype": "its kernels get no scales for a quantized KV cache; use 'auto'",
    "--enable-deterministic-inference": "it lets FlashInfer split the keys by load; leave the flag out",
    "--enable-mis": "its masks know no items; leave the flag out",
}
LIMIT = (
    "would only feed metrics; add --enable-metrics, or --prefill-mode layered with a --layered-policy that"
    " acts on it, as auto"
)
TRAFFIC = "--enable-expert-traffic-metrics does not work with"
ONE = "leave one of the two out"
EXECUTION = "--layered-execution {config.layered_execution}:"
ATTENTION = "--layered-group-attention {config.group_attention}"
BACKENDS = "use --layered-group-attention backends"
OWN_ROUTING = ("flashinfer_trtllm", "flashinfer_mxfp4", "experimental_sgl_trtllm")

REFUSALS: Mapping[Applies, Mapping[str, Applies]] = {
    lambda start: not start.server_args.enable_metrics: {
        f"--slo-ttft-ms {LIMIT}": lambda start: start.has_unread("slo_ttft_ms", Capability.PACES_STEPS),
        f"--slo-tbt-ms {LIMIT}": lambda start: start.has_unread("slo_tbt_ms", Capability.KEEPS_TBT_LIMIT),
    },
    lambda start: start.config.enable_energy_metrics: {
        "--enable-energy-metrics reads the devices of its own node and --nnodes is {args.nnodes}; leave it"
        " out and measure each node with a tool of its own": lambda start: start.server_args.nnodes > 1
    },
    lambda start: start.config.enable_expert_traffic_metrics: {
        f"{TRAFFIC} --speculative-algorithm: a verified step has several rows a request, which are not told"
        f" apart; {ONE}": lambda start: start.server_args.speculative_algorithm is not None,
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
        "--layered-check-invariants {config.layered_check_invariants}: it checks one cohort in flight and"
        " pipeline stages have several; use basic with --pp-size above 1": lambda start: (
            start.has("--pp-size") and start.config.layered_check_invariants != "basic"
        ),
        "--layered-policy {config.layered_policy}: pipeline stages ask a policy for plans only, and it does"
        " not say that this is enough (RUNS_ON_STAGES); use token-target or balanced with --pp-size above"
        " 1": lambda start: start.has("--pp-size") and not start.config.policy_can(Capability.RUNS_ON_STAGES),
        "--prefill-mode layered cannot serve {args.model_path}: {start.model_refusal}": lambda start: (
            start.model_refusal is not None
        ),
        "--prefill-mode layered cannot serve {args.model_path} with {start.untried_sparse_attention}: tokens"
        " of its sparse attention were compared on flashmla_sparse and fa3 only; use a Hopper GPU's defaults"
        " (leave these flags out and --kv-cache-dtype at bfloat16) or serve it in chunked mode": (
            lambda start: start.untried_sparse_attention is not None
        ),
        "--layered-policy balanced: it cuts by the bytes of the layers, and those of {args.model_path} are"
        " not known; use token-target": _cuts_blindly,
    },
    lambda start: start.config.is_layered and start.has("--enable-lora"): {
        **_with_flags("--enable-lora in layered mode", LORA),
        "--enable-lora in layered mode does not work with --layered-execution {config.layered_execution}:"
        " two CUDA streams with adapters are not tested; use fused or sequential": lambda start: (
            start.executes("concurrent", "auto") and start.server_args.device == "cuda"
        ),
        "--enable-lora in layered mode cannot serve {args.model_path}: adapters of latent attention (MLA) are"
        " not tested; serve merged weights": lambda start: start.model_config.attention_arch.name == "MLA",
    },
    lambda start: start.config.is_layered and any(map(start.has, RECURRENT)) and start.is_recurrent: (
        _with_flags("--prefill-mode layered with recurrent layers", RECURRENT)
    ),
    lambda start: start.config.is_layered and start.config.group_attention != "backends": {
        f"{ATTENTION} does not work with an attention backend other than flashinfer: it runs FlashInfer's"
        " kernels on the tables of that backend; add --attention-backend flashinfer": lambda start: (
            set(start.server_args.get_attention_backends()) != {"flashinfer"}
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
    for asked, rows in REFUSALS.items():
        for text, applies in rows.items() if asked(start) else ():
            if applies(start):
                raise UnsupportedError(text.format(start=start, config=config, args=server_args))
