"""Flags that layered mode, or one of its features, does not work with: reason; remedy."""

from collections.abc import Callable, Mapping
from typing import Any

RANKS = "its ranks agree on the rows of one batch a step and a layered step runs two"
FOREIGN_CACHE = "it keeps KV in a cache of its own, which may take slots that a cohort has filled half"

DRAFTS = ("NGRAM", "STANDALONE", "EAGLE", "EAGLE3")
"""What may draft in layered mode, as SGLang resolves `--speculative-algorithm`."""

FLAGS: Mapping[str, str] = {
    "--speculative-algorithm": f"beside a cohort only {', '.join(DRAFTS)} are tested; use one of them, or"
    " leave the flag out",
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
    # Of SGLang 0.5.23.
    "--enable-pd-role-switch": "it ends one event loop and starts another; leave the flag out",
    "--prefill-decode-interval": "it lets prompts wait for decode rounds, and layered mode decodes in every"
    " step; use 0",
    "--enable-watermark": "it marks tokens by those before them, kept by rows of the request pool, which is"
    " not tested beside a cohort; leave the flag out",
    "--enable-return-aux-hidden-states": "a model gathers these rows in one forward and a prompt takes"
    " several; leave the flag out",
    "--enable-encoder-swa-bounded-replay": "it computes windows again in forwards of its own; leave the flag"
    " out",
    "--enable-nvidia-megakernel": "one kernel runs all layers of the rows that decode; leave the flag out",
    "--enable-amd-monokernel": "one kernel runs all layers of the rows that decode; leave the flag out",
    "--enable-paged-experts": "experts of two kinds of rows would take one another's place on the device;"
    " leave the flag out",
    "--enable-kv-cache-sharding": "it is for servers that only compute prompts; leave the flag out",
    "--enable-unified-cache-external-linker": f"{FOREIGN_CACHE}; leave the flag out",
    "--hicache-host-memory-mode": "KV that passes through host memory without staying there is not tested"
    " beside a cohort; use 'cache'",
    "--startup-weight-load-mode": "the start compares layer ranges, and the weights would come after it; use"
    " 'serial'",
}
"""What layered mode does not work with: the reason, and after a semicolon the remedy."""

LORA: Mapping[str, str] = {
    "--lora-backend": "triton_v2 keeps which rows have which adapter in objects of its own, which a layered"
    " step would have to exchange for each kind of its rows; use 'csgmv' or 'triton'",
    "--enable-lora-overlap-loading": "a stream of its own writes adapters beside a cohort, which is not"
    " tested; leave the flag out",
    "--pp-size": "a cohort passes a stage beside the decode rows of other micro-batches, whose adapters are"
    " not counted with its own when it is admitted; use 1",
}
"""What adapters do not work with in layered mode: the reason, and after a semicolon the remedy."""

RECURRENT: Mapping[str, str] = {
    "--pp-size": "states of several stages are not tested beside a cohort; use 1",
    "--enable-hierarchical-cache": "states that come back from host memory are not tested beside a cohort;"
    " leave the flag out",
    "--enable-lora": "adapters of these layers are not tested beside a cohort; serve merged weights",
    "--enable-int8-mamba-checkpoint": "rounded states are not tested beside a cohort; leave the flag out",
    "--enable-linear-replayssm": "states late by some tokens are not tested; leave the flag out",
    "--enable-linear-replayssm-spec": "states behind drafts that are computed again are not tested; leave the"
    " flag out",
}
"""What models with recurrent layers do not work with: the reason, and after a semicolon the remedy."""

SPECULATION: Mapping[str, str] = {
    "--pp-size": "SGLang verifies drafts on one pipeline stage; use 1",
    "--enable-hierarchical-cache": "KV of drafts that comes back from host memory is not tested beside a"
    " cohort; leave one of the two out",
    "--enable-lora": "adapters of drafts are not tested beside a cohort; leave one of the two out",
    "--enable-return-routed-experts": "SGLang keeps no expert ids of the prompt where drafts are verified;"
    " leave one of the two out",
    "--speculative-adaptive": "it exchanges attention backends while a cohort is in flight, which is not"
    " tested; leave the flag out",
    "--layered-graph-granularity": "decode rows run in SGLang's own graphs, apart from the prompt's; leave"
    " the flag out",
    "--layered-graph-group-rows": "decode rows run apart from the prompt's; leave the flag out",
}
"""What speculative decoding does not work with in layered mode: the reason, after a semicolon the remedy."""

OVERTAKING: Mapping[str, str] = {
    "--lora-drain-wait-threshold": "it orders the whole queue by adapters and short prompts are admitted"
    " apart; leave one of the two out",
}
"""What prompts that overtake others do not work with: the reason, and after a semicolon the remedy."""

# Values, beside none and false ones, that ask for nothing of what a flag is refused for. The two loaders
# choose the quantization by themselves, after these checks; that of "gguf" shows as --quantization.
UNASKED: Mapping[str, Callable[[Any], bool]] = {
    "--speculative-algorithm": lambda value: value in DRAFTS,
    "--disaggregation-mode": lambda value: value == "null",
    "--moe-a2a-backend": lambda value: value == "none",
    "--attn-cp-size": lambda value: value == 1,
    "--dcp-size": lambda value: value == 1,
    "--pp-size": lambda value: value == 1,
    "--lora-backend": lambda value: value != "triton_v2",
    "--hicache-host-memory-mode": lambda value: value == "cache",
    "--startup-weight-load-mode": lambda value: value == "serial",
    "--load-format": lambda value: value not in ("bitsandbytes", "flash_rl"),
    "--kv-cache-dtype": lambda value: value in ("auto", "bf16", "bfloat16"),
}

# What FlashInfer's kernels in the place of SGLang's attention backend do not work with.
GROUP_ATTENTION: Mapping[str, str] = {
    "--pp-size": "its stages run SGLang's attention backends; use 'backends'",
    "--kv-cache-dtype": "its kernels get no scales for a quantized KV cache; use 'auto'",
    "--enable-deterministic-inference": "it lets FlashInfer split the keys by load; leave the flag out",
    "--enable-mis": "its masks know no items; leave the flag out",
}
