"""The Kubernetes folders as kustomize makes them: whole, valid, from the files that Compose mounts."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from docker_files import DOCKER, KUBERNETES, KUSTOMIZATIONS, REPO, compose, parse_container_args, rendered

API_VERSION = "1.34"
FOLDERS = sorted(folder for folder in KUSTOMIZATIONS if folder.parent == KUBERNETES)
MONITORING = KUBERNETES / "monitoring"
WATCHING = ("prometheus", "alertmanager", "grafana")
Objects = dict[tuple[str, str], dict[str, Any]]


def objects(folder: Path) -> Objects:
    return {(each["kind"], each["metadata"]["name"]): each for each in rendered(folder)}


def name_of(folder: Path) -> str:
    return str(folder.relative_to(DOCKER))


def pod_of(found: Objects, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = found["Deployment", name]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("folder", sorted(KUSTOMIZATIONS), ids=name_of)
def test_what_a_folder_names_is_there_and_every_file_is_named(folder: Path) -> None:
    made = KUSTOMIZATIONS[folder]
    patches = [each["path"] for each in made.get("patches", [])]
    for name in made.get("resources", []):
        place = (folder / name).resolve()
        assert place.is_file() or place in KUSTOMIZATIONS, name
    for name in patches:
        patch = yaml.safe_load((folder / name).read_text())
        base = [
            each
            for path in (KUBERNETES / "base").glob("*.yaml")
            for each in yaml.safe_load_all(path.read_text())
        ]
        named = (patch["kind"], patch["metadata"]["name"])
        assert named in {(each["kind"], each.get("metadata", {}).get("name")) for each in base}
    generated = [file for each in made.get("configMapGenerator", []) for file in each["files"]]
    assert all((folder / file).is_file() for file in generated)
    if folder.parent == KUBERNETES:
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {name for name in (*made["resources"], *patches) if name.endswith(".yaml")}
        assert made["namespace"] == "layered"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_is_valid_and_in_one_namespace(folder: Path) -> None:
    found = objects(folder)
    for (kind, _), each in found.items():
        assert each["metadata"]["namespace"] == "layered"
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(each, API_VERSION, strict=True)
    [subject] = found["RoleBinding", "layered-router"]["subjects"]
    assert subject["namespace"] == "layered" and ("ServiceAccount", subject["name"]) in found
    references = {
        (kind, volume[key][inner])
        for (_, name), each in found.items()
        if each["kind"] == "Deployment"
        for volume in pod_of(found, name).get("volumes", [])
        for kind, key, inner in (
            ("ConfigMap", "configMap", "name"),
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        )
        if key in volume
    }
    assert references <= set(found)


def mounted(found: Objects, name: str) -> dict[str, str]:
    """Path in the container and text of every file that a pod has from a ConfigMap."""
    pod = pod_of(found, name)
    maps = {each["name"]: each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    [container] = pod["containers"]
    return {
        f"{mount['mountPath']}/{file}": text
        for mount in container["volumeMounts"]
        if mount["name"] in maps
        for file, text in found["ConfigMap", maps[mount["name"]]]["data"].items()
    }


@pytest.mark.parametrize("name", WATCHING)
def test_what_watches_has_the_files_and_the_image_of_compose(name: str) -> None:
    service, found = compose()["services"][name], objects(MONITORING)
    expected = {}
    for source, target, *_ in (mount.split(":") for mount in service["volumes"]):
        for path in (DOCKER / source).rglob("*") if source.startswith(".") else ():
            if path.is_file() and path.name != "kustomization.yaml":
                expected[f"{target}/{path.relative_to(DOCKER / source)}"] = path.read_text()
    assert mounted(found, name) == expected and expected
    [container] = pod_of(found, name)["containers"]
    assert container["image"] == service["image"]
    assert container.get("command") == service.get("entrypoint")
    assert container.get("args") == service.get("command")
    environment = {each["name"]: each.get("value") for each in container.get("env", [])}
    assert set(environment) <= set(service.get("environment", {}))


def test_the_names_that_prometheus_and_grafana_look_up_are_services() -> None:
    found = objects(MONITORING)
    config = yaml.safe_load((DOCKER / "monitoring/prometheus/prometheus.yml").read_text())
    places = [*config["scrape_configs"], *config["alerting"]["alertmanagers"]]
    looked_up = {
        (name, each["port"])
        for place in places
        for each in place.get("dns_sd_configs", [])
        for name in each["names"]
    }
    grafana = (DOCKER / "monitoring/grafana/provisioning/datasources/prometheus.yaml").read_text()
    assert yaml.safe_load(grafana)["datasources"][0]["url"] == "http://prometheus:9090"
    for name, port in looked_up | {("prometheus", 9090)}:
        service = found["Service", name]["spec"]
        assert port in {each["port"] for each in service["ports"]}
        selected = [
            each
            for (kind, _), each in found.items()
            if kind == "Deployment"
            and service["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(selected) == 1
        # every pod is a target of its own only where the name stands for the pods
        assert (service.get("clusterIP") == "None") == (name in ("server", "router"))


def test_an_overlay_of_somebody_elses_says_namespace_registry_and_model(tmp_path: Path) -> None:
    written = (DOCKER / "README.md").read_text().split("    # kustomization.yaml\n")[1].split("\n\n")[0]
    overlay = yaml.safe_load(textwrap.dedent(written))
    assert "//docker/kubernetes/monitoring?ref=v" in overlay["resources"][0]
    overlay["resources"] = [os.path.relpath(MONITORING, tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    server = {"name": "server", "args": ["--model-path", "mine"]}
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "layered-server"}}
    patch["spec"] = {"template": {"spec": {"containers": [server]}}}
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(patch))
    found = objects(tmp_path)
    assert {each["metadata"]["namespace"] for each in found.values()} == {"inference"}
    assert found["RoleBinding", "layered-router"]["subjects"][0]["namespace"] == "inference"
    for name in ("layered-server", "layered-router"):
        [container] = pod_of(found, name)["containers"]
        assert container["image"] == "registry.example.org/sglang-layered:0.1.0"
    assert pod_of(found, "layered-server")["containers"][0]["args"] == server["args"]


def test_the_operators_folder_has_the_dashboard_by_its_label() -> None:
    [board] = [each for each in rendered(KUBERNETES / "operator") if each["kind"] == "ConfigMap"]
    assert board["metadata"]["labels"] == {"grafana_dashboard": "1"}
    source = REPO / "docker/monitoring/grafana/dashboards/layered.json"
    assert board["data"] == {"layered.json": source.read_text()}


def test_the_folder_without_a_gpu_makes_its_model_and_asks_for_none() -> None:
    found = objects(KUBERNETES / "cpu")
    pod = pod_of(found, "layered-server")
    [server], [maker] = pod["containers"], pod["initContainers"]
    args = parse_container_args(server["args"])
    assert (args.device, args.prefill_mode, args.enable_metrics) == ("cpu", "layered", True)
    assert maker["args"][maker["args"].index("--out") + 1] == args.model_path
    assert maker["args"][:2] == compose()["services"]["cpu-model"]["command"][:2]
    assert "limits" not in server["resources"] or not server["resources"]["limits"]
    assert {"name": "SGLANG_USE_CPU_ENGINE", "value": "1"} in server["env"]
    assert not [kind for kind, _ in found if kind == "PersistentVolumeClaim"]
    router = pod_of(found, "layered-router")["containers"]
    assert {each["image"] for each in (server, maker, *router)} == {"sglang-layered:0.1.0-cpu"}
