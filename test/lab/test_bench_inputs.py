"""What people give to `bench` by mistake: one clear error, before anything is lost."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.arrivals import arrival_times
from sglang_layered_lab.bench.lengths import read_columns
from sglang_layered_lab.bench.load import Load
from sglang_layered_lab.bench.spec import read_spec, spec_from
from sglang_layered_lab.bench.spec_describe import outline
from sglang_layered_lab.bench.spec_errors import SpecError, did_you_mean
from sglang_layered_lab.bench.spec_load import NEEDS, LoadSpec
from sglang_layered_lab.bench.sweep_spec import sweep_from

PROGRAM = [sys.executable, "-m", "sglang_layered"]
SPEC = """\
[run]
name = "plain"

[server]
url = "http://127.0.0.1:1"

[load]
arrivals = "constant"
rate_per_s = 100.0
num_requests = 3

[workload]
vocab = [1, 900]

[workload.lengths]
prompt = { distribution = "fixed", tokens = 8 }
output = { distribution = "fixed", tokens = 4 }
"""


def values_of(**sections: object) -> dict[str, object]:
    lengths = {name: {"distribution": "fixed", "tokens": 4} for name in ("prompt", "output")}
    return {
        "run": {"name": "a"},
        "server": {"url": "http://h:1"},
        "load": {"arrivals": "constant", "rate_per_s": 1.0, "num_requests": 2},
        "workload": {"vocab": [1, 9], "lengths": lengths},
        **sections,
    }


def problems_of(values: dict[str, object]) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec_from(values)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("load", "num_requests", 10**14),
        ("load", "rate_per_s", 1e300),
        ("load", "duration_s", 1e300),
        ("load", "ramp_s", 1e300),
        ("load", "warmup_s", 1e300),
        ("run", "repetitions", 10**14),
        ("run", "seed", 10**400),
        ("run", "timeout_s", 1e300),
        ("slo", "ttft_ms", 1e300),
        ("server", "ready_timeout_s", 1e300),
        ("workload", "vocab", [1, 10**14]),
    ],
)
def test_a_number_that_never_ends_is_refused_by_its_name(section: str, key: str, value: object) -> None:
    values = values_of()
    table = dict(values.get(section, {}))  # type: ignore[call-overload]
    found = problems_of({**values, section: {**table, key: value}})
    assert any(re.match(rf"{section}\.{key}(\[1\])?: .* out of range; give at most ", each) for each in found)


def test_a_number_that_no_float_holds_is_no_number() -> None:
    found = problems_of(values_of(load={"arrivals": "constant", "rate_per_s": 10**400, "num_requests": 2}))
    assert found[0].startswith("load.rate_per_s: 1000") and "is not a number" in found[0]


def test_numbers_that_are_too_many_together_are_refused() -> None:
    found = problems_of(
        values_of(
            run={"name": "a", "timeout_s": 200_000},
            load={"arrivals": "poisson", "rate_per_s": 1e5, "duration_s": 1e5},
        )
    )
    assert found == [
        "load.duration_s: 100000 s at 100000 requests/s are more than 1,000,000 requests; give less of one of"
        " them, or num_requests"
    ]
    long = {name: {"distribution": "fixed", "tokens": 10_000_000} for name in ("prompt", "output")}
    spec = spec_from(
        values_of(
            load={"arrivals": "constant", "rate_per_s": 1.0, "num_requests": 1000},
            workload={"vocab": [1, 9], "lengths": long},
        )
    )
    with pytest.raises(SpecError, match=r"load\.num_requests: the prompts .* longer than 200,000,000 tokens"):
        outline(Load.of(spec))


def test_a_load_far_from_its_mean_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_layered_lab.bench.arrivals.MOST_REQUESTS", 1000)
    load = LoadSpec("gamma", rate_per_s=10.0, burstiness=1e-9, duration_s=1.0)
    with pytest.raises(SpecError, match="more than 1,000 requests are due"):
        arrival_times(load, 0)


def test_a_grid_of_too_many_cells_is_refused() -> None:
    base = {key: each for key, each in values_of().items() if key != "run"}
    grid = {f"slo.k{index}": list(range(100)) for index in range(10)}
    with pytest.raises(SpecError, match=r"^grid: makes .* cells; give at most 10,000"):
        sweep_from(
            base | {"sweep": {"name": "s"}, "arms": [{"name": "a", "mode": "m"}], "grid": grid}, Path(".")
        )


@pytest.mark.parametrize("section", ["sweep", "arms", "grid"])
def test_a_section_of_a_sweep_that_is_no_table_is_named(section: str) -> None:
    base = {key: each for key, each in values_of().items() if key != "run"}
    good = {"sweep": {"name": "s"}, "arms": [{"name": "a", "mode": "m"}], "grid": {}}
    with pytest.raises(SpecError, match=rf"^{section}: 3 is not a (table|list)"):
        sweep_from(base | good | {section: 3}, Path("."))


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "s.toml").write_bytes(mark + SPEC.encode())
    assert read_spec(tmp_path / "s.toml").run.name == "plain"
    (tmp_path / "a.csv").write_bytes(mark + b"time,other\r\n1,2\r\n")
    assert read_columns(tmp_path / "a.csv", ("time",)) == ((1.0,),)
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"time": 1}\n')
    assert read_columns(tmp_path / "a.jsonl", ("time",)) == ((1.0,),)
    bad = SPEC.replace("vocab", "vocabulary")
    (tmp_path / "s.toml").write_bytes(mark + bad.encode())
    line = bad.splitlines().index("vocabulary = [1, 900]") + 1
    with pytest.raises(BenchError, match=rf"s\.toml:{line}: workload\.vocabulary: unknown key"):
        read_spec(tmp_path / "s.toml")


KEYS = [*dict.fromkeys(key for keys in NEEDS.values() for key in keys), "num_requests", "duration_s"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("rate", "did you mean 'rate_per_s'?"),
        ("requests", "did you mean 'num_requests'?"),
        ("clients", "did you mean 'num_clients'?"),
        ("duration", "did you mean 'duration_s'?"),
        ("rate_per_second", "did you mean 'rate_per_s'?"),
        ("traces", "did you mean 'trace'?"),
        ("qps", "choose one of rate_per_s, burstiness, num_clients, trace, num_requests, duration_s"),
    ],
)
def test_a_hint_names_the_key_that_was_meant(given: str, wanted: str) -> None:
    assert did_you_mean(given, KEYS) == wanted


def test_all_errors_of_a_spec_are_told_at_once(tmp_path: Path) -> None:
    text = SPEC.replace('name = "plain"', 'name = "../x"\nrepetitions = 0')
    text = text.replace("rate_per_s", "rate").replace("num_requests = 3", "num_requests = 0")
    text = (
        text.replace("[1, 900]", "[1, 2, 3]")
        .replace("tokens = 8", "token = 8")
        .replace("tokens = 4", "tokens = '4'")
    )
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(BenchError) as caught:
        read_spec(tmp_path / "s.toml")
    lines = str(caught.value).splitlines()
    keys = [line.removeprefix(f"{tmp_path}/s.toml:").split(": ")[0] for line in lines]
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers) and len(keys) == 7, lines
    found = [line.split(": ")[1] for line in lines]
    assert sorted(found) == sorted(
        [
            "run.repetitions",
            "run.name",
            "load.rate",
            "load.num_requests",
            "workload.vocab",
            "workload.lengths.prompt.token",
            "workload.lengths.output.tokens",
        ]
    )


def test_all_errors_of_the_files_of_a_spec_are_told_at_once(tmp_path: Path) -> None:
    spec = spec_from(
        values_of(
            load={"arrivals": "trace", "trace": {"file": "t.csv"}},
            workload={"vocab": [1, 9], "lengths": {"file": "l.csv"}},
        ),
        tmp_path,
    )
    with pytest.raises(SpecError) as caught:
        Load.of(spec)
    assert [each.keys[-2:] for each in caught.value.errors] == [("trace", "file"), ("lengths", "file")]
