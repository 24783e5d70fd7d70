"""Which steps a prompt takes to its first token, by the way it is scheduled beside running requests. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sglang_layered.core.plan import LayerGroupPlan
from sglang_layered.errors import ConfigError
from sglang_layered_lab.cost.step import Joined, PromptRows, Step

Kind = Literal["whole", "chunked", "mixed", "layered"]
KINDS: tuple[Kind, ...] = ("whole", "chunked", "mixed", "layered")


@dataclass(frozen=True, slots=True)
class Way:
    """How a prompt is scheduled.

    `whole`: alone in one step, decodes wait. `chunked`: alone in chunks of `size` tokens, decodes wait
    (SGLang without mixing). `mixed`: in steps of `size` rows, decode rows first, as SGLang counts its
    budget. `layered`: in `size` layer groups beside the decodes; beside none it runs whole. With
    `max_tokens` a whole or layered prompt goes in cohorts of at most so many tokens.
    """

    kind: Kind
    size: int = 0
    joined: Literal["fused", "apart"] = "fused"  # of layered steps
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"way {self.kind!r} is unknown: choose one of {', '.join(KINDS)}")
        if self.kind != "whole" and self.size < 1:
            raise ConfigError(f"a {self.kind} prompt needs a size of 1 or more, not {self.size}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}: give 1 or more")

    @property
    def name(self) -> str:
        """Such as `mixed 512`."""
        return " ".join(
            [self.kind, *([str(self.size)] if self.size else []), *(["apart"] if self.is_apart else [])]
        )

    @property
    def is_apart(self) -> bool:
        """Layered, with decode rows in a forward of their own."""
        return self.kind == "layered" and self.joined == "apart"

    @property
    def decodes_wait(self) -> bool:
        """True when running requests get no token while the prompt runs."""
        return self.kind in ("whole", "chunked")


@dataclass(frozen=True, slots=True)
class Beside:
    """The running requests: how many, and how many tokens each sees on average."""

    decode_rows: int = 0
    context_tokens: float = 0.0

    def step(self) -> Step:
        """A step of theirs alone."""
        return Step(self.decode_rows, self.context_tokens)

    def joined_by(self, prompt_tokens: int) -> Beside:
        """The same and one request more, whose prompt has just been computed."""
        tokens = self.decode_rows * self.context_tokens + prompt_tokens
        return Beside(self.decode_rows + 1, tokens / (self.decode_rows + 1))


NOTHING = Beside()


def prompt_steps(num_layers: int, way: Way, prompt_tokens: int, beside: Beside) -> tuple[Step, ...]:
    """The steps from the first with rows of the prompt to the one that gives its first token.

    Raises:
        ConfigError: a mixed chunk that the decode rows fill, an empty prompt, or more groups than layers.
    """
    if prompt_tokens < 1:
        raise ConfigError(f"prompt_tokens is {prompt_tokens}: give 1 or more")
    if way.kind == "layered" and beside.decode_rows:
        return tuple(_layered(num_layers, way, prompt_tokens, beside))
    if way.kind == "mixed":
        num_rows = way.size - beside.decode_rows
        if num_rows < 1:
            raise ConfigError(f"{beside.decode_rows} decode rows fill a mixed chunk of {way.size}: give more")
        return tuple(_chunks(num_layers, num_rows, prompt_tokens, beside, "mixed"))
    size = way.size if way.kind == "chunked" else way.max_tokens or prompt_tokens
    return tuple(_chunks(num_layers, size, prompt_tokens, NOTHING, "fused"))


def layered_steps(
    plan: LayerGroupPlan, prompt_tokens: int, beside: Beside, joined: Joined = "fused", before: int = 0
) -> Iterator[Step]:
    """A cohort of one prompt, group by group, whatever runs beside it."""
    for group in plan.groups:
        rows = PromptRows.of(prompt_tokens, group.num_layers, before)
        yield Step(beside.decode_rows, beside.context_tokens, rows, joined)


def _layered(num_layers: int, way: Way, prompt_tokens: int, beside: Beside) -> Iterator[Step]:
    if way.size > num_layers:
        raise ConfigError(f"{way.size} groups of {num_layers} layers: give {num_layers} or fewer")
    plan = LayerGroupPlan.even(num_layers, way.size)
    for before, num_rows in _cuts(prompt_tokens, way.max_tokens or prompt_tokens):
        yield from layered_steps(plan, num_rows, beside, way.joined, before)


def _chunks(num_layers: int, size: int, prompt_tokens: int, beside: Beside, joined: Joined) -> Iterator[Step]:
    for before, num_rows in _cuts(prompt_tokens, size):
        rows = PromptRows.of(num_rows, num_layers, before)
        yield Step(beside.decode_rows, beside.context_tokens, rows, joined)


def _cuts(num_tokens: int, size: int) -> Iterator[tuple[int, int]]:
    """Tokens before and tokens of each piece."""
    for start in range(0, num_tokens, size):
        yield start, min(size, num_tokens - start)
