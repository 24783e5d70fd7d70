"""Seconds for work: a machine's coefficients, physical or fitted; two laws that combine them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from sglang_layered_lab.cost.step import StepWork

Law = Literal["max", "sum"]
LAWS: tuple[Law, ...] = ("max", "sum")


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of each coefficient is in a time; a field has the name of its coefficient."""

    byte: float = 0.0
    flop: float = 0.0
    attention_flop: float = 0.0
    prompt_layer_call: float = 0.0
    decode_layer_call: float = 0.0
    sequence_call: float = 0.0
    step: float = 0.0
    request: float = 0.0
    link_byte: float = 0.0


COEFFICIENTS = tuple(item.name for item in fields(Amounts))


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds per unit of each kind of work.

    Law `max`: in every part of a step, moving and computing overlap and the longer counts. Law `sum`: they do
    not. `request` is what a request waits for besides steps, `link_byte` a byte that devices sum up.
    """

    law: Law
    byte: float
    flop: float
    attention_flop: float
    prompt_layer_call: float = 0.0
    decode_layer_call: float = 0.0
    sequence_call: float = 0.0
    step: float = 0.0
    request: float = 0.0
    link_byte: float = 0.0

    def amounts(self, work: StepWork) -> Amounts:
        """What of the work counts under this law: the time is its product with the coefficients."""
        moved = computed = attended = 0.0
        for part in work.parts:
            compute_s = part.flop * self.flop + part.attention_flop * self.attention_flop
            if self.law == "sum" or part.num_bytes * self.byte >= compute_s:
                moved += part.num_bytes
            if self.law == "sum" or part.num_bytes * self.byte < compute_s:
                computed += part.flop
                attended += part.attention_flop
        return Amounts(
            byte=moved,
            flop=computed,
            attention_flop=attended,
            prompt_layer_call=work.prompt_layer_calls,
            decode_layer_call=work.decode_layer_calls,
            sequence_call=work.sequence_calls,
            step=1.0 if work.parts else 0.0,
            link_byte=work.link_bytes,
        )

    def time_s(self, work: StepWork) -> float:
        """Time of a step; 0 for no work."""
        seen = self.amounts(work)
        return float(sum(getattr(seen, name) * getattr(self, name) for name in COEFFICIENTS))
