"""Lengths of prompts and outputs: rows of a file, or draws from distributions."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sglang_layered_lab.bench.spec_errors import SpecError, did_you_mean
from sglang_layered_lab.bench.spec_load import DistributionSpec, LengthsSpec

MAX_DRAWS = 1000  # of one request, until it fits into max_total_tokens


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Tokens of one request, as asked for; both at least 1."""

    prompt_tokens: int
    output_tokens: int

    def fits(self, limit: int | None) -> bool:
        """Whether both together are at most so many tokens."""
        return limit is None or self.prompt_tokens + self.output_tokens <= limit


@dataclass(frozen=True, slots=True)
class FileLengths:
    """Rows of a file, those within the limit."""

    rows: tuple[RequestSize, ...]
    num_left_out: int  # rows above max_total_tokens
    in_order: bool

    def size_of(self, index: int, draws: np.random.Generator) -> RequestSize:
        """Row `index`, from the top again after the last, or one drawn from the request's own stream."""
        return self.rows[index % len(self.rows) if self.in_order else int(draws.integers(len(self.rows)))]


@dataclass(frozen=True, slots=True)
class DrawnLengths:
    """Independent draws for prompt and output, both drawn again while they are above the limit together."""

    prompt: DistributionSpec
    output: DistributionSpec
    max_total_tokens: int | None

    def size_of(self, index: int, draws: np.random.Generator) -> RequestSize:
        """Draw until it fits.

        Raises:
            SpecError: nothing fits in MAX_DRAWS draws.
        """
        for _ in range(MAX_DRAWS):
            size = RequestSize(draw_length(self.prompt, draws), draw_length(self.output, draws))
            if size.fits(self.max_total_tokens):
                return size
        problem = f"{self.max_total_tokens} tokens are too few: {MAX_DRAWS} draws were longer; give more"
        raise SpecError("workload.lengths.max_total_tokens", problem)


LengthSource: TypeAlias = FileLengths | DrawnLengths


def draw_length(spec: DistributionSpec, draws: np.random.Generator) -> int:
    """One length in tokens; takes one number from `draws` whatever the distribution."""
    uniform = float(draws.random())
    if spec.distribution == "fixed":
        assert spec.tokens is not None
        return spec.tokens
    low = spec.min_tokens or 1
    if spec.distribution == "uniform":
        assert spec.max_tokens is not None
        return low + int(uniform * (spec.max_tokens - low + 1))
    return spec.lognormal().draw(uniform, low, spec.max_tokens)


def load_lengths(spec: LengthsSpec, folder: Path) -> LengthSource:
    """Read the file of the spec, or take its distributions.

    Raises:
        SpecError: the file, a column or a value is missing or bad, or no row is within the limit.
    """
    if spec.file is None:
        assert spec.prompt is not None and spec.output is not None
        return DrawnLengths(spec.prompt, spec.output, spec.max_total_tokens)
    keys = "workload.lengths.file"
    try:
        table = read_columns(folder / spec.file, (spec.prompt_column, spec.output_column))
    except ValueError as error:
        raise SpecError(keys, f"{spec.file}: {error}") from error
    if any(tokens < 1 for row in table for tokens in row):
        raise SpecError(keys, f"{spec.file}: a length is below 1; remove that row")
    sizes = [
        RequestSize(max(1, round(prompt * spec.prompt_scale)), max(1, round(output * spec.output_scale)))
        for prompt, output in table
    ]
    kept = tuple(size for size in sizes if size.fits(spec.max_total_tokens))
    if not kept:
        problem = f"no row of {spec.file} is within {spec.max_total_tokens} tokens; give more"
        raise SpecError("workload.lengths.max_total_tokens", problem)
    return FileLengths(kept, len(sizes) - len(kept), spec.order == "file")


def read_columns(path: Path, columns: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Numbers of some columns of a CSV with a header, or of a file of JSON objects, one a line (.jsonl).

    Raises:
        ValueError: the file cannot be read or is empty, or a value is no finite number; the text says where.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = _json_rows(lines) if path.suffix == ".jsonl" else csv.DictReader(lines)
            values = tuple(
                tuple(_number(row, column, number) for column in columns)
                for number, row in enumerate(rows, start=1)
            )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot be read: {reason}; a relative path starts at the spec's folder") from error
    if not values:
        raise ValueError("has no rows; give a file with some")
    return values


def _json_rows(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON ({error}); correct it") from error
            yield row if isinstance(row, Mapping) else {}


def _number(row: Mapping[str, Any], column: str, number: int) -> float:
    if column not in row:
        raise ValueError(f"row {number} has no column {column!r}; {did_you_mean(column, map(str, row))}")
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not isfinite(value):
        raise ValueError(f"row {number}: {column} = {row[column]!r} is no number; correct it")
    return value
