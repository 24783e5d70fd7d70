"""The paper's ratios beside ours: `claims.toml` says what it states and where we measure it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import TypeAdapter

from sglang_layered_lab.bench.ratios import Ratio, ratio
from sglang_layered_lab.bench.sweep_result import SweepResult
from sglang_layered_lab.paper.capacity import joules_at_top_rate

FILE = Path(__file__).with_name("claims.toml")
UNDECIDED = "Undecided: the interval holds"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report: where the paper says it, what, its number, ours, and why they differ."""

    where: str
    what: str
    paper: str
    ours: str
    why: str


@dataclass(frozen=True, slots=True)
class Claim:
    """`arm` over `baseline` in a scalar of a study; `ratio` is the paper's."""

    where: str
    what: str
    paper: str
    ratio: float
    study: str
    scalar: str
    arm: str
    baseline: str
    agree: str
    differ: str
    shown: Literal["change", "times"] = "change"
    point: Mapping[str, Any] = field(default_factory=dict)

    def row(self, sweeps: Mapping[str, SweepResult]) -> Row:
        """Compare with what was measured."""
        sweep = sweeps.get(self.study)
        found = ratio(sweep, self.scalar, self.arm, self.baseline, self.point) if sweep else None
        if found is None:
            why = f"nothing in the records of study {self.study} tells"
            return Row(self.where, self.what, self.paper, "not measured", why)
        text = found.as_change() if self.shown == "change" else found.as_times()
        return Row(self.where, self.what, self.paper, text, self._why(found))

    def _why(self, found: Ratio) -> str:
        if found.is_below or found.is_above:
            return self.agree if found.is_below == (self.ratio < 1) else f"The other direction. {self.differ}"
        if found.interval is not None and found.interval.low <= self.ratio <= found.interval.high:
            return f"{UNDECIDED} the paper's ratio and no change. More rounds would tell."
        return f"{UNDECIDED} no change, and not the paper's ratio. {self.differ}"


def claims(profile: str) -> list[Claim]:
    """All claims in the paper's order, with the names of a profile."""
    document = _document()
    names = document["profiles"][profile]
    found = []
    for values in document["claims"]:
        known = {"point": names["point"]} if values.pop("at_point", False) else {}
        for name, value in values.items():
            known[name] = value.format(**document["words"], **names) if isinstance(value, str) else value
        found.append(TypeAdapter(Claim).validate_python(known))
    return found


def chunk_of(profile: str) -> str:
    """The arm of a profile that stands for the paper's chunks of 512 tokens."""
    return str(_document()["profiles"][profile]["chunk"])


def _document() -> dict[str, Any]:
    return tomlkit.parse(FILE.read_text(encoding="utf-8")).unwrap()


def rows(sweeps: Mapping[str, SweepResult], profile: str) -> Iterator[Row]:
    """All claims with what was measured."""
    for claim in claims(profile):
        yield claim.row(sweeps)
    yield _energy_at_top_rates(sweeps.get("rates-arxiv"), chunk_of(profile))


def _energy_at_top_rates(sweep: SweepResult | None, chunk: str) -> Row:
    joules = [joules_at_top_rate(sweep, arm) if sweep else None for arm in ("layered", chunk)]
    where, what = "energy, each at its own top rate", f"J a token, layered over {chunk}"
    paper = "\N{MINUS SIGN}22 % (Qwen), \N{MINUS SIGN}20 % (GPT)"
    if joules[0] is None or joules[1] is None:
        return Row(where, what, paper, "not measured", "no joules at a rate with 90 % attainment")
    found = Ratio(joules[0] / joules[1], None)
    return Row(where, what, paper, found.as_change(), "Two different rates, as in the paper; one round.")
