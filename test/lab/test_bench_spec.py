"""A spec file: what is read from it, and the one error that a bad one gives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.lengths import load_lengths
from sglang_layered_lab.bench.spec import BenchSpec, MakeModelSpec, read_spec, spec_from
from sglang_layered_lab.bench.spec_errors import SpecError, located
from sglang_layered_lab.bench.spec_load import LoadSpec

EXAMPLES = sorted((Path(__file__).parents[2] / "scripts" / "bench").glob("*.toml"))

GOOD = """\
# a spec
[run]
name = "one"

[server]
model = { arch = "qwen3_moe", preset = "tiny" }
flags = [
    "--max-total-tokens", "24000",
    "--stream-interval=1",
]
env.SOME = "1"

[load]
arrivals = "poisson"
rate_per_s = 2
num_requests = 10

[workload]
seed = 5

[workload.lengths]
prompt = { distribution = "lognormal", mean_tokens = 100.0, p50_tokens = 80 }

[workload.lengths.output]
distribution = "fixed"
tokens = 4
"""


def read(tmp_path: Path, text: str) -> BenchSpec:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return read_spec(path)


def error_of(tmp_path: Path, text: str) -> tuple[int, str]:
    """Line and message of the one error, which is one line and names the file."""
    [found] = errors_of(tmp_path, text)
    return found


def errors_of(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    """Line and message of every error, each on a line that names the file."""
    with pytest.raises(BenchError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    found = [re.fullmatch(rf"{re.escape(str(tmp_path / 's.toml'))}:(\d+): (.+)", line) for line in lines]
    assert all(found), lines
    return [(int(each[1]), each[2]) for each in found if each is not None]


def test_a_good_spec_is_read(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    assert spec.server.model == MakeModelSpec("qwen3_moe", "tiny")
    assert spec.server.flags == ("--max-total-tokens", "24000", "--stream-interval=1")
    assert spec.server.env == {"SOME": "1"}
    assert spec.load == LoadSpec("poisson", rate_per_s=2.0, num_requests=10)
    assert type(spec.load.rate_per_s) is float
    assert spec.workload.lengths.prompt is not None and spec.workload.lengths.prompt.p50_tokens == 80
    assert (spec.workload_seed, spec.run.seed, spec.slo.ttft_ms) == (5, 0, None)
    assert spec.folder == tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "rate_per_s = 2",
            "rate_per_sec = 2",
            r"load\.rate_per_sec: unknown key; did you mean 'rate_per_s'\?",
        ),
        ("rate_per_s = 2", "rate_per_s = -2", r"load\.rate_per_s: -2 is out of range; .* more than 0"),
        ("rate_per_s = 2", "rate_per_s = '2'", r"load\.rate_per_s: '2' is not a number; give a number"),
        ("rate_per_s = 2", "rate_per_s = true", r"load\.rate_per_s: True is not a number.*"),
        ("rate_per_s = 2", "rate_per_s = nan", r"load\.rate_per_s: nan is not a number.*"),
        ("rate_per_s = 2", "rate_per_s = inf", r"load\.rate_per_s: inf is not a number.*"),
        ("num_requests = 10", "num_requests = 1.5", r"load\.num_requests: 1\.5 is not a whole number.*"),
        ("num_requests = 10", "num_requests = 1979-05-27", r"load\.num_requests: .* is not a whole number.*"),
        (
            'arrivals = "poisson"',
            'arrivals = "poison"',
            r"load\.arrivals: 'poison' is unknown; give 'poisson', .*",
        ),
        (
            'arrivals = "poisson"',
            'arrivals = "x"',
            r"load\.arrivals: .*'poisson', 'gamma', 'constant', .* or 'trace'",
        ),
        ("rate_per_s = 2", "rate_per_s = 2\nburstiness = 1.0 #!", r"load\.burstiness: .* to 'gamma'"),
        ("[load]", "[laod]", r"laod: unknown key; did you mean 'load'\?"),
        ('name = "one"', 'name = "../one"', r"run\.name: .* makes no file name; .*"),
        ("seed = 5", "seed = 5\nvocab = [7, 7]#!", r"workload\.vocab: \[7, 7\] is empty.*"),
        ("seed = 5", "seed = 5\nvocab = [7] #!", r"workload\.vocab\[1\]: is missing; add it"),
        ("seed = 5", "seed = 5\nprefixes = 3 #!", r"workload\.prefixes: 3 is not a table; give a table"),
        ("prompt = {", "fil = 3#!\nprompt = {", r"workload\.lengths\.fil: unknown key; .* 'file'\?"),
        (
            "tokens = 4",
            "tokens = 4\nmax_tokens = 5#!",
            r".*\.output\.max_tokens: distribution = 'fixed' does not use it; .*",
        ),
        ("tokens = 4", "tokens = 0", r"workload\.lengths\.output\.tokens: 0 is out .* 1 or more"),
        ("p50_tokens = 80", "p50_token = 80", r".*\.prompt\.p50_token: .* did you mean 'p50_tokens'\?"),
        ("p50_tokens = 80", "median = 80", r".*\.prompt\.median: unknown key; choose one of distrib.*"),
        (
            "p50_tokens = 80",
            "p50_tokens = 180",
            r".*\.prompt\.distribution: .* mean_tokens must be above p50.*",
        ),
        ('"tiny"', '"tiniest"', r"server\.model\.preset: .*'tiniest' is unknown.*"),
        ('"tiny"', '"tiny", num_layers = 0', r"server\.model\.num_layers: .*1 or more"),
        ('env.SOME = "1"', "env.SOME = 1", r"server\.env\.SOME: 1 is not text in quotes.*"),
    ],
)
def test_a_bad_value_names_line_key_and_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    bad = next((line for line in new.splitlines() if "#!" in line), new)
    wanted = next(number for number, line in enumerate(text.splitlines(), start=1) if bad in line)
    line, found = error_of(tmp_path, text)
    assert re.fullmatch(message, found), found
    assert line == wanted


def test_a_flag_of_a_long_list_is_named_and_the_list_is_located(tmp_path: Path) -> None:
    line, message = error_of(tmp_path, GOOD.replace('"--stream-interval=1"', '"--port=1"'))
    assert line == GOOD.splitlines().index("flags = [") + 1
    assert message.startswith("server.flags[2]: '--port=1' is set by the benchmark; remove it")


@pytest.mark.parametrize(
    ("gone", "where", "message"),
    [
        ("rate_per_s = 2\n", "[load]", "load.rate_per_s: is missing; arrivals = 'poisson' needs it"),
        ("num_requests = 10\n", "[load]", "load.num_requests: the load has no end; .*"),
        ('arrivals = "poisson"\n', "[load]", "load.arrivals: is missing; add it"),
        ('name = "one"\n', "[run]", "run.name: is missing; add it"),
        ("tokens = 4\n", "[workload.lengths.output]", "workload.lengths.output.tokens: is missing; .*"),
    ],
)
def test_a_missing_key_is_located_at_its_table(tmp_path: Path, gone: str, where: str, message: str) -> None:
    text = GOOD.replace(gone, "", 1)
    line, found = error_of(tmp_path, text)
    assert (text.splitlines()[line - 1], bool(re.fullmatch(message, found))) == (where, True), found


def test_a_missing_section_is_located_at_the_top(tmp_path: Path) -> None:
    found = errors_of(tmp_path, GOOD.replace("[load]", "[slo]").partition("arrivals")[0])
    assert found == [(1, "load: is missing; add it"), (1, "workload: is missing; add it")]


@pytest.mark.parametrize(
    "bad",
    ["seed = ", "seed == 1", "[load]", "seed = 5\nseed = 6#!", "seed = 'a", "x = [1,\n2", "[[run]]"],
)
def test_no_toml_is_located_at_its_statement(tmp_path: Path, bad: str) -> None:
    text = GOOD.replace("seed = 5", f"# before\n\n{bad}")
    wanted = next(
        line
        for line in reversed(bad.splitlines())
        if "#!" in line or len(bad.splitlines()) == 1 or "[1" in line
    )
    line, message = error_of(tmp_path, text)
    assert text.splitlines()[line - 1] == wanted
    assert line == len(text.splitlines()) - text.splitlines()[::-1].index(wanted)
    assert message.startswith("this is not TOML: ")


def test_an_unreadable_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no\.toml: the spec cannot be read: No such file"):
        read_spec(tmp_path / "no.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'\n")
    with pytest.raises(BenchError, match=r"latin\.toml: the spec cannot be read: .*utf-8"):
        read_spec(tmp_path / "latin.toml")


def test_errors_found_later_get_their_line_too(tmp_path: Path) -> None:
    text = GOOD.partition("[workload.lengths]")[0] + '[workload.lengths]\nfile = "none.csv"\n'
    spec = read(tmp_path, text)
    path = tmp_path / "s.toml"
    with (
        pytest.raises(BenchError, match=rf":{len(text.splitlines())}: workload\.lengths\.file: none\.csv"),
        located(path),
    ):
        load_lengths(spec.workload.lengths, spec.folder)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("server", {}, "server.model: is missing; give the model to serve, or the url of a running server"),
        ("server", {"url": "http://a:1", "model": "m"}, "server.model: a server at a url has its own; .*"),
        ("server", {"url": "http://a:1", "flags": ["-x"]}, "server.flags: a server at a url has its own; .*"),
        ("server", {"url": "localhost:1"}, "server.url: .* is no address; give http://HOST:PORT"),
        (
            "load",
            {"arrivals": "closed", "num_clients": 0, "num_requests": 1},
            "load.num_clients: 0 is out .*",
        ),
        (
            "load",
            {"arrivals": "closed", "num_clients": 1, "num_requests": 9, "cooldown_s": 1},
            "load.cooldown_s.*",
        ),
        (
            "load",
            {"arrivals": "closed", "num_clients": 1, "num_requests": 9, "rate_per_s": 1},
            "load.rate_per_s.*",
        ),
        (
            "load",
            {"arrivals": "gamma", "rate_per_s": 1, "num_requests": 9},
            "load.burstiness: is missing; .*",
        ),
        ("load", {"arrivals": "trace", "trace": {"file": "x"}, "ramp_s": 1}, "load.ramp_s: .* remove it"),
        ("load", {"arrivals": "trace", "trace": {"file": "x", "speed": 0}}, "load.trace.speed: 0 is out .*"),
        (
            "load",
            {"arrivals": "constant", "rate_per_s": 1, "num_requests": 9, "ramp_start_per_s": 1},
            "load.ramp_start_per_s: there is no rate that ramps; .*",
        ),
        (
            "load",
            {"arrivals": "constant", "rate_per_s": 1, "duration_s": 9, "warmup_s": 4, "cooldown_s": 5},
            "load.duration_s: 9 s leave nothing to measure .*; give more",
        ),
        (
            "load",
            {
                "arrivals": "closed",
                "num_clients": 1,
                "num_requests": 9,
                "background": {"num_streams": 1, "output_tokens": 4, "tokens_before": 5},
            },
            "load.background.tokens_before: 5 are more than output_tokens; give less",
        ),
        ("load", {"arrivals": "constant", "rate_per_s": 1, "duration_s": 600}, "run.timeout_s: 600 s end .*"),
        ("slo", {"ttft_ms": 0}, "slo.ttft_ms: 0 is out of range; give more than 0"),
        ("run", {"name": "a", "repetitions": 0}, "run.repetitions: 0 is out .* give 1 or more"),
    ],
)
def test_sections_that_contradict_themselves(
    tmp_path: Path, section: str, values: dict[str, object], message: str
) -> None:
    table = read(tmp_path, GOOD).to_json() | {section: values}
    with pytest.raises(SpecError) as caught:
        spec_from(table)
    assert re.fullmatch(message, str(caught.value)), caught.value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_good_and_come_back_from_their_record(path: Path) -> None:
    spec = read_spec(path)
    assert spec_from(json.loads(json.dumps(spec.to_json())), path.parent) == spec
    load_lengths(spec.workload.lengths, spec.folder)


def test_there_are_examples_for_cpu_and_h200() -> None:
    assert {path.stem.partition("-")[0] for path in EXAMPLES} == {"cpu", "h200"}


def test_a_record_has_no_folders(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    server = replace(spec.server, model="/data/models/m", flags=("--x=/data/y.json", "org/name", "a=b=c"))
    values = replace(spec, server=server).to_json()
    assert values["server"]["model"] == "m"
    assert values["server"]["flags"] == ["--x=y.json", "org/name", "a=b=c"]
    assert str(tmp_path) not in json.dumps(values)


def test_a_changed_copy_is_checked_as_well() -> None:
    load = LoadSpec("poisson", rate_per_s=2.0, num_requests=10)
    with pytest.raises(ValueError, match=r"rate_per_s: -1\.0 is out of range"):
        replace(load, rate_per_s=-1.0)
