"""What a policy may know when it plans a cohort: sizes, the queue, the decode load, the last step's time.

Values only: a policy can neither hold on to a request nor change one.
"""

from dataclasses import dataclass
from typing import Literal

from sglang_layered.core.layer_shape import LayerShape

StepKind = Literal["prefill", "decode", "layered", "encoder"]


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took and what was in it.

    `duration_s` is the forward's time on the device (on CPU: the launch, which computes). A decode or prefill
    step runs all layers; in a layered step the prompt rows run `num_layers` of them. An encoder step is a
    decode step beside which the images of a prompt pass their encoder, and its prompt no layer yet.
    """

    kind: StepKind
    duration_s: float
    num_decode_rows: int
    num_prompt_rows: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """The scheduler when a cohort is admitted.

    `prompt_lens` are the tokens to compute, one entry a request, `prefix_lens` those found in the prefix
    cache. `decode_kv_tokens` is the context of all running requests together. `last_step` is None before the
    first step, and always None with several ranks: their clocks differ and their plans must not. `layers` are
    the sizes of each layer; empty for a model that transformers does not know.
    """

    num_layers: int
    prompt_lens: tuple[int, ...]
    prefix_lens: tuple[int, ...] = ()
    num_running: int = 0
    decode_kv_tokens: int = 0
    num_waiting: int = 0
    last_step: StepTiming | None = None
    layers: tuple[LayerShape, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Tokens to compute for the whole cohort."""
        return sum(self.prompt_lens)

    @property
    def mean_context_tokens(self) -> float:
        """Tokens that a prompt row sees, on average: its prefix and half of its own prompt."""
        pairs = zip(self.prompt_lens, self.prefix_lens or [0] * len(self.prompt_lens), strict=True)
        return sum(length * (prefix + length / 2) for length, prefix in pairs) / max(self.prompt_tokens, 1)
