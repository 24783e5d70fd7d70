"""How many experts real text touches, as a table to be met. Knows no model."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_layered.errors import ModelRecipeError

DEFAULT_TARGETS = Path(__file__).with_name("paper_coverage.json")
DECODE, PROMPT = "decode_rows", "prompt_tokens"


@dataclass(frozen=True, slots=True)
class CoverageTarget:
    """The part of a layer's experts, mean over the layers, that some tokens of one step touch together."""

    kind: str  # DECODE: one token each of so many requests; PROMPT: tokens in a row of one prompt
    num_tokens: int
    coverage: float  # in (0, 1]
    fit: bool = True  # False: measured and shown, but not aimed at

    def __str__(self) -> str:
        return f"{self.num_tokens} {'decode rows' if self.kind == DECODE else 'prompt tokens'}"


@dataclass(frozen=True, slots=True)
class CoverageTable:
    """Rows in the order of the file."""

    rows: tuple[CoverageTarget, ...]
    source: str = ""

    @property
    def fitted(self) -> "CoverageTable":
        """The rows that are aimed at."""
        return CoverageTable(tuple(row for row in self.rows if row.fit), self.source)

    def most(self, kind: str) -> int:
        """Most tokens in a row of this kind, 0 if there is none."""
        return max((row.num_tokens for row in self.rows if row.kind == kind), default=0)


def read_targets(path: Path = DEFAULT_TARGETS) -> CoverageTable:
    """Read a table of targets.

    Raises:
        ModelRecipeError: it names --targets, the file, and what is wrong in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _table(content)
    except (OSError, ValueError) as error:  # what json and ModelRecipeError raise are ValueErrors
        raise ModelRecipeError(f"--targets {path}: {error}") from error


def _table(content: Any) -> CoverageTable:
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ModelRecipeError('it must be {"rows": [...]}')
    _refuse_unknown(content, {"rows", "source"}, "the table")
    rows = tuple(_row(row, f"row {number}") for number, row in enumerate(content["rows"], start=1))
    if not any(row.fit for row in rows):
        raise ModelRecipeError("no row is to be met")
    if len({(row.kind, row.num_tokens) for row in rows}) < len(rows):
        raise ModelRecipeError("two rows ask for the same tokens")
    return CoverageTable(rows, str(content.get("source", "")))


def _row(row: Any, where: str) -> CoverageTarget:
    if not isinstance(row, dict):
        raise ModelRecipeError(f"{where} must be a table of {DECODE} or {PROMPT}, and coverage")
    _refuse_unknown(row, {DECODE, PROMPT, "coverage", "fit"}, where)
    kinds = [kind for kind in (DECODE, PROMPT) if kind in row]
    if len(kinds) != 1:
        raise ModelRecipeError(f"{where} must have one of {DECODE} and {PROMPT}")
    num_tokens, coverage, fit = row[kinds[0]], row.get("coverage"), row.get("fit", True)
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens < 1:
        raise ModelRecipeError(f"{where}: {kinds[0]} {num_tokens!r} must be a whole number of at least 1")
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage <= 1:
        raise ModelRecipeError(f"{where}: coverage {coverage!r} must be above 0 and at most 1")
    if not isinstance(fit, bool):
        raise ModelRecipeError(f"{where}: fit {fit!r} must be true or false")
    return CoverageTarget(kinds[0], num_tokens, float(coverage), fit)


def _refuse_unknown(found: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ModelRecipeError(
            f"{where} has the unknown key {unknown[0]!r}; it takes {', '.join(sorted(known))}"
        )
