"""Figures in the documents are those of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, median
from typing import Any

from sglang_layered_lab.quickstart.figures import COLUMNS, measure
from sglang_layered_lab.quickstart.replay import read_played

REPO = Path(__file__).resolve().parents[2]
RECORD = REPO / "results" / "quickstart" / "2026-11-30-2cores"


def test_quickstart_table_of_the_readme_is_the_record() -> None:
    runs = {each.mode: list(map(measure, each.repetitions)) for each in read_played(RECORD)}
    rows = re.findall(
        r"^\| (whole|mixed|layered) \| (.+?) \|$", (REPO / "README.md").read_text(), re.MULTILINE
    )
    assert [mode for mode, _ in rows] == ["whole", "mixed", "layered"]
    for mode, cells in rows:
        metrics = {name: median(each[name] for each in runs[mode]) for name in COLUMNS}
        shown = [
            f"{metrics['ttft_s']:.2f}",
            f"{metrics['worst_gap_s'] * 1000:.0f}",
            f"{metrics['tokens_per_s']:.1f}",
        ]
        assert cells.split(" | ") == shown


def test_what_architecture_names_is_there() -> None:
    text = (REPO / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", text))
    package = REPO / "python" / "sglang_layered"
    assert len(named) > 20
    assert not [name for name in named if not ((package / name).exists() or (REPO / name).exists())]


def study(name: str) -> dict[tuple, list[dict]]:
    """Rows of a study's record by what was measured."""
    path = REPO / "results" / "models" / f"2026-11-21-2cores-{name}.json"
    found: dict[tuple, list[dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        found.setdefault((row["prompt_tokens"], row["decode_rows"], row["way"]), []).append(row)
    return found


def middle(rows: list[dict]) -> tuple[float, float]:
    """Medians of the time to the first token and of the worst step."""
    return median(row["ttft_s"] for row in rows), median(max(row["steps_s"]) for row in rows)


def test_dense_table_is_the_record() -> None:
    text = (REPO / "docs" / "models.md").read_text()
    seen = study("dense")
    for prompt_tokens, decode_rows in dict.fromkeys(key[:2] for key in seen):
        cells = [
            "{:.3f} / {:.3f}".format(*middle(rows))
            for key, rows in seen.items()
            if key[:2] == (prompt_tokens, decode_rows)
        ]
        assert f"| {prompt_tokens} | {decode_rows} | {' | '.join(cells)} |" in text


def test_balanced_table_is_the_record() -> None:
    text = (REPO / "docs" / "models.md").read_text()
    seen = {key[2]: middle(rows) for key, rows in study("balanced").items()}
    for num_groups in (2, 3, 4, 6):
        even, balanced = seen[f"even {num_groups}"], seen[f"balanced {num_groups}"]
        drop = round(100 * (1 - balanced[1] / even[1]))
        worst = f"| {num_groups} | {even[1]:.3f} s | {balanced[1]:.3f} s | -{drop} % |"
        assert f"{worst} {even[0]:.3f} s | {balanced[0]:.3f} s |" in text


def test_pipeline_table_is_the_record() -> None:
    text = (REPO / "docs" / "models.md").read_text()
    record = json.loads((REPO / "results" / "models" / "2026-11-21-2cores-pipeline.json").read_text())
    tokens = record["num_prompts"] * record["prompt_tokens"]
    for mode, shown in (("layered", "layered, 4 groups a stage"), ("chunks of 512", "SGLang, chunks of 512")):
        rows = [row for row in record["rows"] if row["mode"] == mode]
        rate = tokens / median(row["burst_s"] for row in rows)
        assert f"| {shown} | {rate:.0f} | " in text
        assert f"| {median(row['bubble'] for row in rows):.2f} | " in text


def numbers_of(text: str, start: str) -> list[float]:
    """The numbers behind `start` in the one line that has it."""
    [line] = [line.strip() for line in text.splitlines() if line.strip().startswith(start)]
    return [float(word) for word in line.removeprefix(start).split() if word != "%"]


def test_expert_bytes_table_is_the_record() -> None:
    text = (REPO / "docs" / "metrics.md").read_text()
    record = json.loads((REPO / "results" / "expert-bytes" / "2026-11-21-2cores.json").read_text())
    means: dict[str, dict[str, float]] = {}
    for way in dict.fromkeys(row["way"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["way"] == way]
        assert all(row["total_bytes"] == row["oracle_bytes"] for row in rows)
        keys = ("total_bytes", "prompt_bytes", "expected_bytes")
        means[way] = {key: mean(row[key] for row in rows) for key in keys}
    base = means["even 5"]
    for way, seen in means.items():
        shown = "layered, 5" if way == "even 5" else way
        parts = [seen[key] / base[key] for key in ("total_bytes", "expected_bytes")]
        expected = [seen["total_bytes"] / 1e9, seen["prompt_bytes"] / 1e9, *parts]
        assert numbers_of(text, shown) == [round(value, 2) for value in expected]


def test_cost_table_is_the_record() -> None:
    text = (REPO / "docs" / "metrics.md").read_text()
    record = json.loads((REPO / "results" / "metrics-cost" / "2026-11-21-2cores.json").read_text())
    for kind in ("decode", "layered"):
        for num_running in (4, 32):
            rows = [row for row in record["rows"] if (row["kind"], row["num_running"]) == (kind, num_running)]
            on, off = ([row for row in rows if row["observed"] is observed] for observed in (True, False))
            step_s = median(row["duration_s"] for row in on)
            part = median(row["spent_s"] / row["duration_s"] for row in on)
            expected = [round(1e3 * step_s, 1), round(1e3 * median(row["spent_s"] for row in on), 3)]
            ratio = step_s / median(row["duration_s"] for row in off)
            expected += [round(100 * part, 2), round(ratio, 3)]
            [line] = [line for line in text.splitlines() if line.split()[:2] == [kind, str(num_running)]]
            assert [float(word) for word in line.split()[2:] if word != "%"] == expected


def test_the_clients_honesty_is_that_of_its_records() -> None:
    text = " ".join((REPO / "docs" / "benchmark.md").read_text().split())
    folder = REPO / "results" / "client-honesty"
    quick = json.loads((folder / "2026-11-22-2cores-realtime.json").read_text())
    errors = quick["runs"]["scattered"]["errors_ms"]
    assert quick["asked"]["streams"] == 256 and quick["asked"]["realtime"]
    arrival, gap, ttft = errors["arrival"], errors["gap"], errors["ttft"]
    said = (
        f"Arrivals at 256 streams were noted {arrival['median']:.2f} ms late (median),"
        f" {arrival['p99']:.1f} ms (p99), gaps between tokens were {gap['p99']:.1f} ms off (p99) and"
        f" TTFT {ttft['median']:.1f} ms (median), {ttft['p99']:.1f} ms (p99)"
    )
    assert said in text
    inside, around = _most_off(quick, ("tbt", "tpot", "worst_gap")), _most_off(quick, ("ttft", "e2e"))
    assert f"worst gap are at most {inside:.2f} ms from the known ones" in text
    assert f"those of TTFT and E2E at most {around:.2f} ms" in text
    normal = json.loads((folder / "2026-11-22-2cores.json").read_text())
    errors = normal["runs"]["scattered"]["errors_ms"]
    assert f"1 % of TTFTs are {errors['ttft']['p99']:.0f} ms off" in text
    assert f"the worst gaps {_most_off(normal, ('worst_gap',)):.1f} ms in the mean" in text
    assert f"stopped for {errors['gap']['max']:.0f} ms" in text


def _most_off(record: dict[str, Any], metrics: tuple[str, ...]) -> float:
    """How far the mean or median of any of these is from the known one, in milliseconds."""
    runs = [run["metrics_off_ms"] for run in record["runs"].values()]
    return max(abs(run[metric][part]) for run in runs for metric in metrics for part in ("mean", "p50"))
