"""The studies of a profile: files are sweeps, `--fast` keeps arms that are there, bad names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_layered.errors import BenchError
from sglang_layered_lab.bench.spec import MakeModelSpec
from sglang_layered_lab.paper.claims import claims
from sglang_layered_lab.paper.studies import Reduction, read_studies, reduced

PAPER = Path(__file__).resolve().parents[2] / "scripts" / "paper"
PROFILES = sorted(path.name for path in PAPER.iterdir() if path.is_dir())


@pytest.mark.parametrize("profile", PROFILES)
def test_every_file_is_a_sweep_whose_name_is_its_own(profile: str) -> None:
    studies = read_studies(PAPER / profile)
    assert len({study.name for study in studies}) == len(studies)
    for study in studies:
        assert study.path.stem.partition("-")[2] == study.name
        assert study.spec.cells


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_names_a_study_with_its_arms_and_point(profile: str) -> None:
    studies = {study.name: study.spec for study in read_studies(PAPER / profile)}
    for claim in claims(profile):
        if (profile, claim.study) == ("h200", "calibrated"):
            continue  # dummy weights cannot be calibrated yet; results/h200/TODO.md
        spec = studies[claim.study]
        assert {claim.arm, claim.baseline} <= {arm.name for arm in spec.arms}, claim.what
        for key, value in claim.point.items():
            assert value in spec.grid[key], claim.what


def test_fast_is_small_and_needs_few_servers() -> None:
    full, fast = read_studies(PAPER / "cpu"), read_studies(PAPER / "cpu", fast=True)
    assert {study.name for study in fast} <= {study.name for study in full}
    commands = {
        (str(cell.spec.server.model), cell.spec.server.flags) for study in fast for cell in study.spec.cells
    }
    assert len(commands) == 3
    for study in fast:
        assert all(
            isinstance(cell.spec.server.model, MakeModelSpec) and cell.spec.server.model.preset == "tiny"
            for cell in study.spec.cells
        )


def test_more_flags_go_to_every_server() -> None:
    for study in read_studies(PAPER / "cpu", more_flags=("--enable-energy-metrics",)):
        assert all("--enable-energy-metrics" in cell.spec.server.flags for cell in study.spec.cells)


def test_only_keeps_what_is_named_and_refuses_others() -> None:
    assert [study.name for study in read_studies(PAPER / "cpu", only=("dense",))] == ["dense"]
    with pytest.raises(BenchError, match="no study dens; there are same, alone"):
        read_studies(PAPER / "cpu", only=("dens",))


def test_a_reduction_that_keeps_an_arm_that_is_not_there_is_refused(tmp_path: Path) -> None:
    values = {
        "sweep": {"name": "a"},
        "arms": [{"name": "x", "mode": "whole"}],
        "grid": {"load.num_clients": [1, 2]},
    }
    small = reduced(values, Reduction(arms=("x",), changes={"sweep.rounds": 1, "load.num_clients": 3}))
    assert (small["sweep"], small["load"]) == ({"name": "a", "rounds": 1}, {"num_clients": 3})
    assert reduced(values, Reduction(flags=("--dtype", "float32")))["server"]["flags"][-2:] == [
        "--dtype",
        "float32",
    ]
    assert reduced(values, Reduction(grid={"load.num_clients": [9]}))["grid"] == {"load.num_clients": [9]}
    with pytest.raises(BenchError, match=r"arms: fast\.toml keeps y"):
        reduced(values, Reduction(arms=("y",)))
    with pytest.raises(BenchError, match="holds no sweeps"):
        read_studies(tmp_path)


def test_a_sweep_in_a_profile_serves_what_it_says() -> None:
    by_name = {study.name: study.spec for study in read_studies(PAPER / "cpu")}
    flags = {cell.arm.name: cell.spec.server.flags for cell in by_name["beside"].cells}
    for groups in (2, 4, 8):
        words = flags[f"layered-{groups}"]
        assert words[words.index("--layered-num-groups") + 1] == str(groups)
    for tokens in (64, 256):
        words = flags[f"mixed-{tokens}"]
        assert words[words.index("--chunked-prefill-size") + 1] == str(tokens)
        assert "--enable-mixed-chunk" in words and "--prefill-mode" not in words
    assert "--prefill-mode" not in flags["whole"] and "--enable-mixed-chunk" not in flags["whole"]
