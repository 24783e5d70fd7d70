"""A step-time model with what it was fitted to, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_layered.errors import BenchError
from sglang_layered_lab.cost.costs import StepCosts
from sglang_layered_lab.cost.coverage import COVERAGES, Coverage, CoverageTable
from sglang_layered_lab.cost.model import StepModel
from sglang_layered_lab.cost.predict import Prediction, predict_prompt
from sglang_layered_lab.cost.shape import ModelShape
from sglang_layered_lab.cost.ways import Beside, Way

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """Loads that a fit was shown, ends included; a prediction outside of them is an extrapolation."""

    decode_rows: tuple[int, int]
    prompt_tokens: tuple[int, int]

    def holds(self, decode_rows: int, prompt_tokens: int) -> bool:
        """True inside."""
        (few, many), (short, long) = self.decode_rows, self.prompt_tokens
        return few <= decode_rows <= many and short <= prompt_tokens <= long


@dataclass(frozen=True, slots=True)
class SavedFit:
    """A model and what it comes from; `seen` is None where nothing was fitted.

    `wait_steps` decode steps pass before a prompt's first one, `delay_steps` after its last before the client
    has its first token.
    """

    model: StepModel
    wait_steps: float = 0.0
    delay_steps: int = 0
    seen: Seen | None = None
    sources: tuple[str, ...] = ()

    def predict(self, way: Way, prompt_tokens: int, beside: Beside) -> Prediction:
        """Predict one prompt, with the waits that were seen."""
        return predict_prompt(
            self.model,
            way,
            prompt_tokens,
            beside,
            wait_steps=self.wait_steps,
            delay_steps=self.delay_steps,
        )

    def to_json(self) -> dict[str, Any]:
        """What `read_fit` reads."""
        coverage = self.model.coverage
        names = {id(each): name for name, each in COVERAGES.items()}
        return {
            "format": FORMAT,
            "sources": list(self.sources),
            "units": "seconds per byte, FLOP, call of a layer, call of a sequence's attention, step, request",
            "costs": asdict(self.model.costs),
            "wait_steps": self.wait_steps,
            "delay_steps": self.delay_steps,
            "attention": self.model.attention,
            "shape": asdict(self.model.shape),
            "coverage": asdict(coverage) if isinstance(coverage, CoverageTable) else names[id(coverage)],
            "seen": asdict(self.seen) if self.seen else None,
        }


def read_fit(path: Path) -> SavedFit:
    """Read a fit.

    Raises:
        BenchError: it is no such file, or of another format.
    """
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise BenchError(f"{path}: format {values['format']}, not {FORMAT}; fit again")
        shape, costs = ModelShape(**values["shape"]), StepCosts(**values["costs"])
        model = StepModel(shape, _read_coverage(values["coverage"]), costs, values["attention"])
        seen = values["seen"] and Seen(**{name: tuple(each) for name, each in values["seen"].items()})
        waits = values["wait_steps"], values["delay_steps"]
        return SavedFit(model, *waits, seen, tuple(values["sources"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BenchError):
            raise
        raise BenchError(f"{path}: no fit ({error!r}); make one with cost fit --out") from error


def _read_coverage(value: Any) -> Coverage:
    if isinstance(value, str):
        return COVERAGES[value]
    points = {name: tuple((rows, part) for rows, part in each) for name, each in value.items()}
    return CoverageTable(points["prompt"], points["decode"])
