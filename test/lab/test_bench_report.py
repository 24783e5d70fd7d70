"""Pictures and the HTML report of made-up sweeps: one file, escaped, and frank about losses and gaps."""

from __future__ import annotations

from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench_sweeps import ARMS, Made, write_sweep
from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.pictures import Missing, Picture, all_pictures, why_no_energy
from sglang_layered_lab.bench.report import read_all, write_report
from sglang_layered_lab.bench.sweep_result import SweepResult, mode_of
from sglang_layered_lab.cli.bench import bench

VOID = ("meta", "img", "link", "br", "hr")
EVIL = "<script>alert('x')</script> & \"more\""
ARMS_HERE = {
    "default": ARMS["default"],
    "mixed-512": ARMS["mixed-512"],
    "layered-slow": Made("layered", EVIL, 2.0, 0.9, {"hybrid": 9.0}),
}


class Page(HTMLParser):
    """Texts by class of their element, links; it fails where elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.seen: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append((tag, values.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            for name in {name for _, names in self.open for name in names.split()} | {self.open[-1][0]}:
                self.seen.setdefault(name, []).append(data.strip())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "a sweep"
    write_sweep(folder, arms=ARMS_HERE, num_requests=4, rounds=2, title=f"Title {EVIL}")
    return folder


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    out = folder.parent / "deep" / "report"
    write_report([folder], out)
    return out


@pytest.fixture(scope="module")
def page(out: Path) -> Page:
    return Page((out / "index.html").read_text())


def test_the_page_needs_no_other_file_and_no_two_things_of_it_share_a_name(page: Page, out: Path) -> None:
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert len(page.links) > 8
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    text = (out / "index.html").read_text()
    assert text.count("<svg ") == 3 and "url(http" not in text


def test_records_are_named_with_their_hashes(page: Page, folder: Path) -> None:
    files = [folder / "sweep.json", *sorted(folder.glob("*.json.gz"))]
    assert len(files) == 4
    for path in files:
        assert sha256(path.read_bytes()).hexdigest() in page.seen["code"]
        assert path.name in page.seen["td"]


def test_records_of_single_runs_are_arms_of_one_sweep(tmp_path: Path, folder: Path) -> None:
    one, two = (folder / f"{name}.json.gz" for name in ("default", "layered-slow"))
    page = Page(write_report([one, two], tmp_path / "page.html").read_text())
    assert any("Baseline: default." in text for text in page.seen["p"])
    assert "sweep.json" not in page.seen["td"] and sha256(two.read_bytes()).hexdigest() in page.seen["code"]
    copy = tmp_path / one.name
    copy.write_bytes(one.read_bytes())
    with pytest.raises(BenchError, match="two records have one name"):
        write_report([one, copy], tmp_path / "page.html")
    copy.write_text("{}")
    with pytest.raises(BenchError, match="no record of bench run"):
        write_report([copy], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ((), "default"),
        (("--enable-mixed-chunk",), "mixed"),
        (("--prefill-mode", "layered", "--enable-mixed-chunk"), "layered"),
        (("--prefill-mode=auto",), "auto"),
    ],
)
def test_a_single_run_has_the_mode_of_its_flags(flags: tuple[str, ...], mode: str) -> None:
    assert mode_of(flags) == mode


def test_names_are_escaped(page: Page, out: Path) -> None:
    assert "script" not in page.seen
    assert any(EVIL in text for text in page.seen["td"]) and any(EVIL in text for text in page.seen["h2"])
    assert "<script" not in (out / "index.html").read_text()


def test_losing_arms_are_shown_as_losing(page: Page) -> None:
    lost = page.seen["losses"]
    assert f"layered {EVIL}" in lost and "TTFT, mean" in lost and "TBT, worst gap of all" in lost
    assert any("worse" in text for text in page.seen["loses"])
    assert any("loses" in text for text in page.seen["outcomes"])
    assert any(text.startswith("Where these arms lose") for text in page.seen["summary"])


def test_what_is_missing_is_announced(page: Page) -> None:
    said = " ".join(page.seen["missing"])
    assert "Energy a token" in said and "energy was not asked for" in said
    assert "the grid has no two values of load.rate_per_s" in said
    assert any(text.startswith("Not measured here: ") and "energy" in text for text in page.seen["note"])


def test_versions_machine_and_coverage_are_there(page: Page) -> None:
    for fact in ("0.5.17", "0123abc", "f00d" * 16, "a made-up processor", "75 / - / 75", "all records"):
        assert fact in page.seen["td"] or fact in page.seen["p"]


def test_a_sweep_that_is_not_finished_says_so_and_one_round_has_no_interval(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    result = write_sweep(folder, arms=ARMS_HERE, num_requests=3, rounds=1, with_experts=False)
    result.of_arm("default")[0].record_path.unlink()
    page = Page(write_report([folder], tmp_path / "out").read_text())
    said = " ".join(page.seen["missing"])
    assert "1 cell(s) of the sweep have no record" in said
    assert "no server counted experts" in said
    assert "One round: no interval." in page.seen["note"]
    assert "not measured" in page.seen["td"]


def test_the_baseline_can_be_chosen_and_sweeps_of_one_name_do_not_mix(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    write_sweep(other, arms={"layered-2": ARMS["layered-2"]}, num_requests=2, rounds=1)
    path = write_report([folder, other], tmp_path / "out", baseline="mixed-512")
    page = Page(path.read_text())
    assert any("Baseline: mixed chunk 512." in text for text in page.seen["p"])
    assert any("Baseline: layered G=2." in text for text in page.seen["p"])
    assert {"made-up", "made-up-2"} <= set(page.ids) and "#made-up-2" in page.links
    with pytest.raises(BenchError, match="no sweep has this arm"):
        write_report([folder], tmp_path / "out", baseline="none")
    with pytest.raises(BenchError, match="no sweep"):
        read_all([tmp_path])


def test_doubts_and_other_machines_are_said(tmp_path: Path) -> None:
    import gzip
    import json

    folder = tmp_path / "sweep"
    result = write_sweep(folder, arms=ARMS_HERE, num_requests=2, rounds=1)
    path = result.cells[0].record_path
    record = json.loads(gzip.decompress(path.read_bytes()))
    record["made_with"]["commit"] = "another"
    record["repetitions"][0]["usage"]["doubts"] = ["experts are no longer counted"]
    path.write_bytes(gzip.compress(json.dumps(record).encode()))
    page = Page(write_report([folder], tmp_path / "out").read_text())
    assert "another" in page.seen["td"] and "0123abc" in page.seen["td"]
    assert any("no longer counted (default.json.gz)" in text for text in page.seen["missing"])
    assert "default.json.gz" in page.seen["p"]


def test_an_asked_counter_that_is_not_there_is_the_machines_lack(tmp_path: Path) -> None:
    arms = {"a": Made("default", "x", 0.5, 0.1, {}, ("--enable-energy-metrics",))}
    result = write_sweep(tmp_path / "sweep", arms=arms, num_requests=2, rounds=1)
    assert why_no_energy(result.cells) == "no energy counter on this machine"


def pictures(result: SweepResult) -> dict[str, Picture | Missing]:
    return {each.title: each for each in all_pictures(result, result.arms[0])}


def test_a_sweep_with_everything_lacks_no_picture(tmp_path: Path) -> None:
    result = write_sweep(
        tmp_path / "all",
        arms=ARMS_HERE,
        rates=(0.5, 1.0),
        num_requests=3,
        rounds=2,
        joules=5.0,
        num_background=1,
    )
    found = list(all_pictures(result, "default"))
    assert not [each for each in found if isinstance(each, Missing)]
    stems = [each.stem for each in found]
    assert len(set(stems)) == len(stems) == 2 + 2 * 4
    assert "made-up-attainment" in stems and "made-up-rate_per_s-0.5-pareto" in stems


def test_without_limits_there_is_no_attainment(tmp_path: Path) -> None:
    result = write_sweep(
        tmp_path / "bare", arms=ARMS_HERE, rates=(0.5, 1.0), num_requests=2, rounds=1, with_limits=False
    )
    assert pictures(result)["Attainment over the rate"].why.startswith("no limits are set")


def test_the_commands_say_what_they_wrote(tmp_path: Path, folder: Path) -> None:
    run = CliRunner().invoke
    drawn = run(bench, ["plot", str(folder), "--out", str(tmp_path / "drawn"), "--format", "svg"])
    assert drawn.exit_code == 0, drawn.output
    names = ["pareto", "tokens", "expert-bytes"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == sorted(
        f"made-up-{name}.svg" for name in names
    )
    assert [line for line in drawn.output.splitlines() if line.startswith("wrote ")] == [
        f"wrote {tmp_path / 'drawn' / f'made-up-{name}.svg'}" for name in names
    ]
    assert "no picture of 'Energy a token': energy was not asked for" in drawn.output
    told = run(bench, ["report", str(folder), "--out", str(tmp_path / "page")])
    assert told.output == f"wrote {tmp_path / 'page' / 'index.html'}\n"
    told = run(bench, ["report", str(folder), "-o", str(tmp_path / "one.html")])
    assert told.output == f"wrote {tmp_path / 'one.html'}\n"
    assert run(bench, ["report"]).exit_code == run(bench, ["report", str(tmp_path / "none")]).exit_code == 2
