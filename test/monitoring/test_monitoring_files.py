"""`sglang-layered monitoring`: the files of docker/monitoring elsewhere, with other addresses, as objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from monitored import CONFIG, promtool
from sglang_layered.errors import ConfigError
from sglang_layered_lab.cli.monitoring import monitoring

SOURCE = CONFIG.parent
NAMES = sorted(path.relative_to(SOURCE) for part in SOURCE.iterdir() for path in part.rglob("*.*"))


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(monitoring, [str(arg) for arg in args])


def test_the_files_are_those_that_compose_mounts(tmp_path: Path) -> None:
    assert run("write", tmp_path / "out").exit_code == 0
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(NAMES) <= written and len(NAMES) >= 8
    for name in written:
        assert (tmp_path / "out" / name).read_bytes() == (SOURCE / name).read_bytes()
    assert not [name for name in written if name.suffix.startswith(".py")]


def test_what_somebody_changed_is_not_replaced_unasked(tmp_path: Path) -> None:
    mine = tmp_path / "prometheus" / "alerts.yml"
    mine.parent.mkdir()
    mine.write_text("groups: []\n")
    refused = run("write", tmp_path)
    assert isinstance(refused.exception, ConfigError) and "alerts.yml: there, and different" in str(
        refused.exception
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert run("write", tmp_path, "--force").exit_code == 0
    assert run("write", tmp_path).exit_code == 0  # the same again
    assert mine.read_bytes() == (SOURCE / "prometheus" / "alerts.yml").read_bytes()


def test_given_addresses_are_scraped_and_told(tmp_path: Path) -> None:
    targets = {"server": ["10.0.0.1:30000", "gpu-2:30000"], "router": ["10.0.0.3:29000"]}
    targets["alertmanager"] = ["[::1]:9093"]
    given = [f"--target={name}={address}" for name, found in targets.items() for address in found]
    assert run("write", tmp_path, *given).exit_code == 0
    config = yaml.safe_load((tmp_path / "prometheus" / "prometheus.yml").read_text())
    before = yaml.safe_load((SOURCE / "prometheus" / "prometheus.yml").read_text())
    places = [*config["scrape_configs"][:2], *config["alerting"]["alertmanagers"]]
    for place, found in zip(places, targets.values(), strict=True):
        assert place.pop("static_configs") == [{"targets": found}]
    for place in (*before["scrape_configs"][:2], *before["alerting"]["alertmanagers"]):
        del place["dns_sd_configs"]
    assert config == before


@pytest.mark.parametrize("target", ["server", "gateway=a:1", "server=a", "server=http://a:1", "server=a b:1"])
def test_a_target_that_is_none_is_refused_before_a_file_is_written(target: str, tmp_path: Path) -> None:
    refused = run("write", tmp_path / "out", "--target", target)
    assert isinstance(refused.exception, ConfigError) and "give NAME=HOST:PORT" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_prometheus_takes_what_is_written(tmp_path: Path) -> None:
    assert run("write", tmp_path, "--target", "server=10.0.0.1:30000").exit_code == 0
    assert promtool("check", "config", tmp_path / "prometheus" / "prometheus.yml").count("SUCCESS") == 4


def test_the_operators_rules_are_the_rules() -> None:
    objects = {each["metadata"]["name"]: each for each in yaml.safe_load_all(run("rules").output)}
    assert {each["kind"] for each in objects.values()} == {"PrometheusRule"}
    assert {name: each["spec"] for name, each in objects.items()} == {
        f"layered-{name}": yaml.safe_load((CONFIG / f"{name}.yml").read_text())
        for name in ("recording", "alerts")
    }
