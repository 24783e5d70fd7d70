"""Of which multimodal models layered mode serves images; everything else that is no text gets a 400."""

from collections.abc import Mapping
from typing import Any

# Models whose tokens the tests compare with SGLang's own and Hugging Face's (test/models/test_images.py).
IMAGES_SERVED = frozenset({"Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"})


class Refused(int):
    """A limit of 0 that says why: SGLang writes its limit into the answer, and nothing else of ours."""

    def __str__(self) -> str:
        return "0 (--prefill-mode layered does not serve them for this model and these flags; use chunked)"


def refused_media(server_args: Any) -> Mapping[str, int]:
    """What a request must not carry, as SGLang takes limits a request; nothing for a model of text.

    Args:
        server_args: SGLang's ServerArgs, resolved.
    """
    from sglang_layered.upstream.releases import arguments

    model_config = arguments.model_config_of(server_args)
    if not model_config.is_multimodal:
        return {}
    is_proved = not IMAGES_SERVED.isdisjoint(model_config.hf_config.architectures or ())
    # Neither features that travel between pipeline stages nor adapters beside an encoder are tested.
    serves_images = is_proved and server_args.pp_size == 1 and not server_args.enable_lora
    kinds = ("video", "audio") if serves_images else ("image", "video", "audio")
    return dict.fromkeys(kinds, Refused(0))
