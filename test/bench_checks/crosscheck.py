"""Our benchmark beside other tools on one server, in turns: do they agree? `scripts/bench-crosscheck`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from bench_checks.crosscheck_compare import Agreement, agreements, table
from bench_checks.crosscheck_load import (
    LOADS,
    MODES,
    TIMEOUT_S,
    Asked,
    LoadKind,
    tokenizer_folder,
)
from bench_checks.crosscheck_reading import DEFINITIONS, Reading, our_reading
from bench_checks.crosscheck_tools import TOOLS, Call, Tool
from bench_checks.crosscheck_words import make_word_tokenizer
from bench_checks.other_load import OtherLoad
from rich.console import Console

from sglang_layered.errors import LayeredPrefillError
from sglang_layered_lab.bench.client_data import PlannedRequest
from sglang_layered_lab.bench.run import (
    Load,
    Server,
    made_with,
    model_folder,
    process_of,
    run_repetition,
)
from sglang_layered_lab.bench.server_state import flush_cache

OUT = Path("out") / "crosscheck"
OURS = "ours"
WARM_UP = 0  # the round that is not measured


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of each: readings by tool, ours in each tool's definitions.

    `others_cores`: how many cores processes of others kept busy during each turn; 0 on a quiet machine.
    """

    order: tuple[str, ...]
    ours: Mapping[str, Reading]
    theirs: Mapping[str, Reading]
    others_cores: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "order": list(self.order),
            "others_cores": dict(self.others_cores),
            "ours_as": {name: each.to_json() for name, each in self.ours.items()},
            "theirs": {name: each.to_json() for name, each in self.theirs.items()},
        }


def order_of(index: int, names: Sequence[str]) -> tuple[str, ...]:
    """Who comes after whom in a round: everyone is first, second and so on in turn."""
    shift = index % len(names)
    return (*names[shift:], *names[:shift])


def one_round(load: Load, server: Server, index: int, folder: Path, rate_per_s: float) -> Round:
    """Each tool's turn with the same requests; `rate_per_s` is that of an open load.

    Raises:
        BenchError: somebody's requests failed, or were not those that were asked for.
    """
    requests = load.planned(index, server)
    tools: dict[str, Tool] = {tool.name: tool for tool in TOOLS}
    order = order_of(index, [OURS, *tools])
    ours: dict[str, Reading] = {}
    theirs: dict[str, Reading] = {}
    others_cores: dict[str, float] = {}
    for name in order:
        flush_cache(server.url)
        others = OtherLoad()
        if name == OURS:
            traces = run_repetition(load, server, index).traces
            ours = {tool.name: our_reading(traces, tool.itl) for tool in TOOLS}
        else:
            place = folder / f"{load.spec.run.name}-{index}-{name}"
            clients, tokenizer = load.spec.load.num_clients, tokenizer_folder(folder)
            call = Call(requests, clients, rate_per_s, server.url, tokenizer, place, TIMEOUT_S)
            theirs[name] = tools[name].run(call)
        others_cores[name] = round(others.cores(), 2)
    for name, reading in (*((OURS, each) for each in ours.values()), *theirs.items()):
        _check(reading, requests, name)
    return Round(order, ours, theirs, others_cores)


def run_mode(
    asked: Asked, mode: str, kinds: Sequence[LoadKind], console: Console
) -> tuple[dict[str, Any], list[Agreement]]:
    """One server and all rounds on it: what goes into the record by load, and the agreements."""
    folder = (OUT / mode).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_arrivals(folder)
    loads = {kind: Load.of(asked.spec(mode, kind, folder)) for kind in kinds}
    first = loads[kinds[0]]
    model = model_folder(first.spec)  # all loads have the same server
    vocab_size = int(json.loads((model / "config.json").read_text())["vocab_size"])
    words = make_word_tokenizer(vocab_size, tokenizer_folder(folder))
    document: dict[str, Any] = {}
    everything: list[Agreement] = []
    with process_of(first.spec, model, folder / "server.log") as process:
        server = Server(process.base_url, vocab_size, words)
        run_repetition(first, server, WARM_UP)
        for kind, load in loads.items():
            rounds = []
            for index in range(WARM_UP + 1, WARM_UP + 1 + asked.rounds):
                rounds.append(one_round(load, server, index, folder, asked.rate_per_s))
                console.print(f"{mode}, {kind} load: round {index} of {asked.rounds}", highlight=False)
            found = compared(rounds)
            console.print(table(found, f"{mode}, {kind} load: medians over {asked.rounds} rounds"))
            document[kind] = recorded(load, rounds, found)
            everything += found
    return document, everything


def compared(rounds: Sequence[Round]) -> list[Agreement]:
    """All tools beside ours."""
    return [
        agreement
        for tool in TOOLS
        for agreement in agreements(
            tool.name, [each.ours[tool.name] for each in rounds], [each.theirs[tool.name] for each in rounds]
        )
    ]


def recorded(load: Load, rounds: Sequence[Round], found: Sequence[Agreement]) -> dict[str, Any]:
    """JSON values of one load's rounds."""
    return {
        "spec": load.spec.to_json(),
        "rounds": [each.to_json() for each in rounds],
        "agreements": [each.to_json() for each in found],
    }


def _check(reading: Reading, requests: Sequence[PlannedRequest], name: str) -> None:
    prompt_tokens = sum(len(str(each.prompt).split()) for each in requests)
    reading.check(len(requests), prompt_tokens, sum(each.max_output_tokens for each in requests), name)


@click.command()
@click.option("--mode", "modes", type=click.Choice(list(MODES)), multiple=True, default=tuple(MODES))
@click.option("--load", "kinds", type=click.Choice(LOADS), multiple=True, default=LOADS)
@click.option("--preset", default="bench", show_default=True, help="Preset of qwen3_moe to serve.")
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(2), help="Turns of each tool.")
@click.option("--requests", default=48, show_default=True, type=click.IntRange(2), help="In each turn.")
@click.option("--clients", default=4, show_default=True, type=click.IntRange(1), help="Of the closed load.")
@click.option("--rate", default=1.5, show_default=True, help="Requests per second of the open load.")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="File for the record.")
def main(
    modes: Sequence[str],
    kinds: Sequence[LoadKind],
    preset: str,
    rounds: int,
    requests: int,
    clients: int,
    rate: float,
    record: Path | None,
) -> None:
    """Run our client, sglang.bench_serving and GuideLLM in turns against one server, and compare.

    Exit status 1: some figure differs by more than 5 %.
    """
    console = Console(width=None if Console().is_terminal else 120)
    asked = Asked(preset, rounds, requests, clients, rate)
    document: dict[str, Any] = {"made_with": made_with(), "definitions": dict(DEFINITIONS), "modes": {}}
    everything: list[Agreement] = []
    for mode in dict.fromkeys(modes):
        document["modes"][mode], found = run_mode(asked, mode, list(dict.fromkeys(kinds)), console)
        everything += found
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(any(each.verdict == "differs" for each in everything))


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except LayeredPrefillError as error:
        sys.exit(f"bench-crosscheck: {error}")
