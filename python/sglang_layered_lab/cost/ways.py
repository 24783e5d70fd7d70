"""The steps of a prompt to its first token, by how it is scheduled; how long it and others then wait. Pure.

The times are predicted by a model of step times, not measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sglang_layered.core.pacing import StepLoad
from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.errors import ConfigError

if TYPE_CHECKING:
    from sglang_layered_lab.cost.fit import FittedModel
    from sglang_layered_lab.cost.roofline import Roofline

StepModel: TypeAlias = "FittedModel | Roofline"
Kind = Literal["whole", "chunked", "mixed", "layered"]


@dataclass(frozen=True, slots=True)
class Way:
    """How a prompt is scheduled.

    `whole`: alone in one step, decodes wait. `chunked`: alone in chunks of `size` tokens, decodes wait
    (SGLang without mixing). `mixed`: in steps of `size` rows, decode rows first, as SGLang counts its
    budget. `layered`: in `size` layer groups beside the decodes, in a forward of their own if `is_apart`;
    beside none it runs whole. With `max_tokens` a whole or layered prompt goes in cohorts of at most so many
    tokens.
    """

    kind: Kind
    size: int = 0
    is_apart: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind != "whole" and self.size < 1:
            raise ConfigError(f"a {self.kind} prompt needs a size of 1 or more, not {self.size}")

    @property
    def name(self) -> str:
        """Such as `mixed 512`."""
        return f"{self.kind}{f' {self.size}' if self.size else ''}{' apart' if self.is_apart else ''}"

    @property
    def decodes_wait(self) -> bool:
        """True when running requests get no token while the prompt runs."""
        return self.kind in ("whole", "chunked")


@dataclass(frozen=True, slots=True)
class Beside:
    """The running requests: how many, and how many tokens each sees on average."""

    decode_rows: int = 0
    context_tokens: float = 0.0

    def step(self) -> StepLoad:
        """A step of theirs alone."""
        return StepLoad(self.decode_rows, round(self.decode_rows * self.context_tokens))

    def joined_by(self, prompt_tokens: int) -> "Beside":
        """The same and one request more, whose prompt has just been computed."""
        tokens = self.decode_rows * self.context_tokens + prompt_tokens
        return Beside(self.decode_rows + 1, tokens / (self.decode_rows + 1))


def prompt_steps(
    num_layers: int, way: Way, prompt_tokens: int, beside: Beside, is_padded: bool = False
) -> tuple[StepLoad, ...]:
    """The steps from the first with rows of the prompt to the one that gives its first token.

    With `is_padded` attention decode rows of a mixed chunk are prompts of one row: that is how SGLang extends
    them, and such an attention then computes all rows before them again.

    Raises:
        ConfigError: a mixed chunk that the decode rows fill, an empty prompt, or more groups than layers.
    """
    if prompt_tokens < 1:
        raise ConfigError(f"prompt_tokens is {prompt_tokens}: give 1 or more")
    if way.kind == "layered" and beside.decode_rows:
        return tuple(_layered(num_layers, way, prompt_tokens, beside.step()))
    size, decode = way.max_tokens or prompt_tokens, StepLoad()
    if way.kind == "chunked":
        size = way.size
    elif way.kind == "mixed":
        size, decode = way.size - beside.decode_rows, beside.step()
        if size < 1:
            raise ConfigError(f"{beside.decode_rows} decode rows fill a mixed chunk of {way.size}: give more")
    extended = decode.decode_rows if is_padded else 0
    rows, before = (1,) * extended, (round(beside.context_tokens),) * extended
    if extended:
        decode = StepLoad()
    return tuple(
        StepLoad(
            decode.decode_rows, decode.decode_tokens, (num_rows, *rows), (done, *before), float(num_layers)
        )
        for done, num_rows in _cuts(prompt_tokens, size)
    )


def _layered(num_layers: int, way: Way, prompt_tokens: int, decode: StepLoad) -> Iterator[StepLoad]:
    if way.size > num_layers:
        raise ConfigError(f"{way.size} groups of {num_layers} layers: give {num_layers} or fewer")
    for done, num_rows in _cuts(prompt_tokens, way.max_tokens or prompt_tokens):
        for group in LayerGroupPlan.even(num_layers, way.size).groups:
            prompt = ((num_rows,), (done,), float(group.num_layers), way.is_apart)
            yield StepLoad(decode.decode_rows, decode.decode_tokens, *prompt)


def _cuts(num_tokens: int, size: int) -> Iterator[tuple[int, int]]:
    """Tokens before and tokens of each piece."""
    for start in range(0, num_tokens, size):
        yield start, min(size, num_tokens - start)


@dataclass(frozen=True, slots=True)
class Waits:
    """What the client waits for besides the prompt's steps, as records showed it.

    `request_s` passes in any case, `before_steps` decode steps before the prompt's first one (0.5 if it comes
    at any moment of one), `delay_steps` after its last before the client has the token.
    """

    request_s: float = 0.0
    before_steps: float = 0.0
    delay_steps: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prompt beside running requests, all in seconds and bytes.

    `ttft_s` runs from the prompt's sending: its waits, then its steps. `worst_gap_s` is the longest time
    between two tokens of a running request until the prompt has its first; None where nothing runs. Expert
    bytes are those of all rows in the prompt's steps.
    """

    way: Way
    prompt_tokens: int
    beside: Beside
    num_steps: int
    ttft_s: float
    worst_step_s: float
    worst_gap_s: float | None
    expert_bytes: float


def predict_prompt(
    model: StepModel, way: Way, prompt_tokens: int, beside: Beside | None = None, waits: Waits | None = None
) -> Prediction:
    """Predict one prompt's way; left out, nothing runs beside it and the client waits for nothing else.

    Raises:
        ConfigError: the way does not suit the model or the running requests.
    """
    beside, waits = beside or Beside(), waits or Waits()
    steps = prompt_steps(model.shape.num_layers, way, prompt_tokens, beside, model.is_padded)
    times_s = [model.step_s(step) for step in steps]
    decode_s, next_s = (model.step_s(each.step()) for each in (beside, beside.joined_by(prompt_tokens)))
    pause_s = sum(times_s) + (1 - waits.delay_steps) * next_s if way.decodes_wait else max(times_s)
    waited_s = waits.request_s + waits.before_steps * decode_s + waits.delay_steps * next_s
    return Prediction(
        way=way,
        prompt_tokens=prompt_tokens,
        beside=beside,
        num_steps=len(steps),
        ttft_s=waited_s + sum(times_s),
        worst_step_s=max(times_s),
        worst_gap_s=pause_s if beside.decode_rows else None,
        expert_bytes=sum(map(model.expert_bytes, steps)),
    )
