"""compose.yaml against the Compose schema, the files that it mounts and the flags of what it starts."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from docker_files import DOCKER, compose, parse_container_args

SERVICES = compose()["services"]
SERVERS = ["server-gpu", "server-cpu", "replica-1", "replica-2"]


def schema() -> dict[str, Any]:
    """The Compose specification, as docker-compose has it."""
    files = importlib.metadata.files("docker-compose") or []
    [path] = [each for each in files if each.name == "compose_spec.json"]
    loaded: dict[str, Any] = json.loads(Path(str(path.locate())).read_text())
    return loaded


def test_it_fits_the_schema_and_the_schema_would_object() -> None:
    validator = jsonschema.Draft201909Validator(schema())
    assert [error.message for error in validator.iter_errors(compose())] == []
    broken = compose()
    broken["services"]["router"]["heathcheck"] = {}
    assert not validator.is_valid(broken)


def test_profiles_start_what_they_should() -> None:
    started = {
        profile: {name for name, service in SERVICES.items() if profile in service["profiles"]}
        for profile in ("gpu", "cpu", "scale")
    }
    watching = {"prometheus", "alertmanager", "grafana"}
    assert started == {
        "gpu": {"server-gpu"} | watching,
        "cpu": {"server-cpu", "cpu-model"} | watching,
        "scale": {"replica-1", "replica-2", "router"} | watching,
    }
    for service in SERVICES.values():  # a service never waits for one of another profile
        for other in service.get("depends_on", []):
            assert set(service["profiles"]) <= set(SERVICES[other]["profiles"])


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_mounted_paths_exist_and_named_volumes_are_declared() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    paths = {source for source, *_ in mounts if source.startswith(".")}
    assert paths == {
        "./monitoring/prometheus",
        "./monitoring/alertmanager",
        "./monitoring/grafana/provisioning",
        "./monitoring/grafana/dashboards",
    }
    assert all(any((DOCKER / path).iterdir()) for path in paths)
    named = {source for source, *_ in mounts} - paths
    assert named == set(compose()["volumes"])


def test_images_are_pinned() -> None:
    for service in SERVICES.values():
        tag = service["image"].rpartition(":")[2]
        assert tag[:1].lstrip("v").isdigit() or tag[1:2].isdigit(), service["image"]


@pytest.mark.parametrize("name", SERVERS)
def test_servers_start_in_layered_mode_with_flags_that_exist(name: str) -> None:
    args = parse_container_args(SERVICES[name]["command"])
    assert args.prefill_mode == "layered"
    assert args.enable_metrics
    assert SERVICES[name]["networks"]["default"]["aliases"] == ["server"]


def test_every_gpu_server_reserves_a_gpu_of_its_own() -> None:
    def gpus(name: str) -> list[str]:
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert all(device["capabilities"] == ["gpu"] for device in devices)
        return [gpu for device in devices for gpu in device["device_ids"]]

    assert (gpus("server-gpu"), gpus("replica-1"), gpus("replica-2")) == (["0"], ["0"], ["1"])
    assert "deploy" not in SERVICES["server-cpu"]


def test_the_router_knows_the_replicas_and_prometheus_the_router() -> None:
    args = parse_container_args(SERVICES["router"]["command"])
    assert args.worker_urls == ["http://replica-1:30000", "http://replica-2:30000"]
    assert args.policy == "cache_aware"
    config = yaml.safe_load((DOCKER / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    found = {
        (name, found["port"])
        for job in config["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for name in found["names"]
    }
    assert found == {("server", 30000), ("router", args.prometheus_port)}


def test_prometheus_tells_the_alertmanager_and_that_one_tells_somebody(tmp_path: Path) -> None:
    config = yaml.safe_load((DOCKER / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    [[found]] = [each["dns_sd_configs"] for each in config["alerting"]["alertmanagers"]]
    [port] = SERVICES["alertmanager"]["ports"]
    assert (found["names"], str(found["port"])) == (["alertmanager"], port.rpartition(":")[2])
    address = "https://example.org/hook?a=1&b=2|3"
    told = started_alertmanager(tmp_path, {"ALERT_WEBHOOK_URL": address})
    routes = yaml.safe_load((tmp_path / "alertmanager.yml").read_text())
    receivers = {each["name"]: each for each in routes["receivers"]}
    used = {routes["route"]["receiver"], *(each["receiver"] for each in routes["route"]["routes"])}
    assert used == set(receivers)
    assert [each["url"] for each in receivers["somebody"]["webhook_configs"]] == [address]
    assert told == ("", f"--config.file={tmp_path}/alertmanager.yml --storage.path=/alertmanager\n")
    said, _ = started_alertmanager(tmp_path, {})
    assert "ALERT_WEBHOOK_URL is not set" in said and "reach nobody" in said


def started_alertmanager(folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What the container's start says, and the arguments that a stand-in for Alertmanager gets of it."""
    program = folder / "alertmanager"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    service = SERVICES["alertmanager"]
    shell, script = service["entrypoint"]
    path = DOCKER / "monitoring" / "alertmanager" / Path(script).name
    done = subprocess.run(
        [shell, path, *service["command"]],
        env={"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr, done.stdout


def test_the_cpu_model_is_made_where_the_cpu_server_looks_for_it(tmp_path: Path) -> None:
    program, *args = SERVICES["cpu-model"]["command"]
    assert program == "sglang-layered"
    out = args.index("--out") + 1
    assert args[out] == parse_container_args(SERVICES["server-cpu"]["command"]).model_path
    args[out] = str(tmp_path / "model")
    subprocess.run([sys.executable, "-m", program.replace("-", "_"), *args], check=True)
    assert (tmp_path / "model" / "config.json").exists()
