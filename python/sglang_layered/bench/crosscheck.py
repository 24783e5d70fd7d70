"""Our benchmark beside other tools on one server, in turns: do they agree? `scripts/bench-crosscheck`.

A closed loop of text prompts. Prompts are all as long; outputs are not, so that requests do not end and
start together: what a first token then waits for would depend on microseconds. The server computes on all
cores but one, which is left to HTTP and to the client.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from sglang_layered.bench.client_data import PlannedRequest
from sglang_layered.bench.crosscheck_compare import Agreement, agreements, table
from sglang_layered.bench.crosscheck_reading import DEFINITIONS, Reading, our_reading
from sglang_layered.bench.crosscheck_tools import TOOLS, Call, Tool
from sglang_layered.bench.crosscheck_words import make_word_tokenizer
from sglang_layered.bench.other_load import OtherLoad
from sglang_layered.bench.run import (
    Load,
    Server,
    flush_cache,
    made_with,
    model_folder,
    process_of,
    run_repetition,
)
from sglang_layered.bench.spec import BenchSpec, spec_from
from sglang_layered.errors import LayeredPrefillError

OUT = Path("out") / "crosscheck"
OURS = "ours"
MODES: Mapping[str, tuple[str, ...]] = {"stock": (), "layered": ("--prefill-mode", "layered")}
PROMPT_TOKENS = 128
OUTPUT_TOKENS = (24, 72)
WARM_UP = 0  # the round that is not measured


@dataclass(frozen=True, slots=True)
class Asked:
    """What to run."""

    preset: str
    rounds: int
    num_requests: int
    num_clients: int
    timeout_s: float = 600.0

    def spec(self, mode: str, tokenizer: Path) -> BenchSpec:
        """The load and its server as a spec of `bench run`."""
        threads = max((os.cpu_count() or 1) - 1, 1)
        low, high = OUTPUT_TOKENS
        flags = ["--tokenizer-path", str(tokenizer), "--stream-interval", "1", "--disable-radix-cache"]
        flags += ["--max-total-tokens", "16384", "--max-running-requests", str(self.num_clients)]
        return spec_from(
            {
                "run": {"name": f"crosscheck-{mode}", "timeout_s": self.timeout_s},
                "server": {
                    "model": {"arch": "qwen3_moe", "preset": self.preset},
                    "flags": [*flags, *MODES[mode]],
                    "env": {"OMP_NUM_THREADS": str(threads)},
                },
                "load": {
                    "arrivals": "closed",
                    "num_clients": self.num_clients,
                    "num_requests": self.num_requests,
                },
                "workload": {
                    "inputs": "text",
                    "lengths": {
                        "prompt": {"distribution": "fixed", "tokens": PROMPT_TOKENS},
                        "output": {"distribution": "uniform", "min_tokens": low, "max_tokens": high},
                    },
                },
            }
        )


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


def one_round(load: Load, server: Server, index: int, tokenizer: Path, folder: Path) -> Round:
    """Each tool's turn with the same requests.

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
            place = folder / f"{index}-{name}"
            clients = load.spec.load.num_clients or 1
            call = Call(requests, clients, server.url, tokenizer, place, load.spec.run.timeout_s)
            theirs[name] = tools[name].run(call)
        others_cores[name] = round(others.cores(), 2)
    for name, reading in (*((OURS, each) for each in ours.values()), *theirs.items()):
        _check(reading, requests, name)
    return Round(order, ours, theirs, others_cores)


def run_mode(asked: Asked, mode: str, console: Console) -> tuple[dict[str, Any], list[Agreement]]:
    """One server and all rounds on it: what goes into the record, and the agreements."""
    folder = (OUT / mode).absolute()
    tokenizer = folder / "tokenizer"
    spec = asked.spec(mode, tokenizer)
    model = model_folder(spec)
    vocab_size = int(json.loads((model / "config.json").read_text())["vocab_size"])
    words = make_word_tokenizer(vocab_size, tokenizer)
    load, rounds = Load.of(spec), []
    with process_of(spec, model, folder / "server.log") as process:
        server = Server(process.base_url, vocab_size, words)
        run_repetition(load, server, WARM_UP)
        for index in range(WARM_UP + 1, WARM_UP + 1 + asked.rounds):
            rounds.append(one_round(load, server, index, tokenizer, folder))
            console.print(f"{mode}: round {index} of {asked.rounds}", highlight=False)
    found = [
        agreement
        for tool in TOOLS
        for agreement in agreements(
            tool.name, [each.ours[tool.name] for each in rounds], [each.theirs[tool.name] for each in rounds]
        )
    ]
    document = {"spec": spec.to_json(), "rounds": [each.to_json() for each in rounds]}
    return document | {"agreements": [each.to_json() for each in found]}, found


def _check(reading: Reading, requests: Sequence[PlannedRequest], name: str) -> None:
    output_tokens = sum(each.max_output_tokens for each in requests)
    reading.check(len(requests), PROMPT_TOKENS * len(requests), output_tokens, name)


@click.command()
@click.option("--mode", "modes", type=click.Choice(list(MODES)), multiple=True, default=tuple(MODES))
@click.option("--preset", default="bench", show_default=True, help="Preset of qwen3_moe to serve.")
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(2), help="Turns of each tool.")
@click.option("--requests", "num_requests", default=48, show_default=True, type=click.IntRange(2))
@click.option("--clients", "num_clients", default=4, show_default=True, type=click.IntRange(1))
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="File for the record.")
def main(
    modes: Sequence[str], preset: str, rounds: int, num_requests: int, num_clients: int, record: Path | None
) -> None:
    """Run our client, sglang.bench_serving and GuideLLM in turns against one server, and compare.

    Exit status 1: some figure differs by more than 5 %.
    """
    console = Console(width=None if Console().is_terminal else 120)
    asked = Asked(preset, rounds, num_requests, num_clients)
    document: dict[str, Any] = {"made_with": made_with(), "definitions": dict(DEFINITIONS), "modes": {}}
    everything: list[Agreement] = []
    for mode in dict.fromkeys(modes):
        document["modes"][mode], found = run_mode(asked, mode, console)
        console.print(table(found, f"{mode}: medians over {rounds} rounds; ratios paired over rounds"))
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
