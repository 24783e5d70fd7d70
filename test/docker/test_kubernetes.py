"""The Kubernetes objects as they are written: against the API's own schema, and against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from docker_files import documents, parse_container_args

API_VERSION = "1.34"
OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in documents()}
STANDARD = [key for key in OBJECTS if key[0] != "ServiceMonitor"]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for (kind, name), each in OBJECTS.items():
        if kind == "Deployment":
            yield name, each["spec"]["template"]


def container(name: str) -> dict[str, Any]:
    [only] = OBJECTS["Deployment", name]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("key", STANDARD, ids="/".join)
def test_objects_fit_the_strict_api_schema(key: tuple[str, str]) -> None:
    kubernetes_validate.validate(OBJECTS[key], API_VERSION, strict=True)


def test_the_schema_would_object() -> None:
    broken = OBJECTS["Service", "layered-router"] | {"spec": {"port": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, API_VERSION, strict=True)


def test_services_and_deployments_select_the_pods_that_there_are() -> None:
    for name, pod in pods():
        labels = pod["metadata"]["labels"].items()
        assert OBJECTS["Deployment", name]["spec"]["selector"]["matchLabels"].items() <= labels
        service = OBJECTS["Service", name]["spec"]
        assert service["selector"].items() <= labels
        ports = {port["name"] for port in container(name)["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
        probes = [value for key, value in container(name).items() if key.endswith("Probe")]
        assert len(probes) >= 2
        assert {probe["httpGet"]["port"] for probe in probes} == {"http"}


def test_service_monitors_find_a_service_with_their_port() -> None:
    monitors = [each["spec"] for (kind, _), each in OBJECTS.items() if kind == "ServiceMonitor"]
    assert len(monitors) == 2
    for spec in monitors:
        [service] = [
            each
            for (kind, _), each in OBJECTS.items()
            if kind == "Service"
            and spec["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        ]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in spec["endpoints"]} <= ports
        assert {endpoint["path"] for endpoint in spec["endpoints"]} == {"/metrics"}


def test_mounts_have_volumes_and_claims_exist() -> None:
    spec = OBJECTS["Deployment", "layered-server"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert {mount["name"] for mount in container("layered-server")["volumeMounts"]} == set(volumes)
    claims = [
        each["persistentVolumeClaim"]["claimName"]
        for each in volumes.values()
        if len(each) > 1 and "persistentVolumeClaim" in each
    ]
    assert [("PersistentVolumeClaim", claim) in OBJECTS for claim in claims] == [True]


def test_pods_run_as_the_user_of_the_image_and_servers_have_a_gpu() -> None:
    for name in ("layered-server", "layered-router"):
        pod = OBJECTS["Deployment", name]["spec"]["template"]
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container("layered-server")["resources"]["limits"] == {"nvidia.com/gpu": 1}


def test_the_server_is_layered_and_the_router_discovers_it() -> None:
    server = parse_container_args(container("layered-server")["args"])
    assert server.prefill_mode == "layered" and server.enable_metrics
    router = parse_container_args(container("layered-router")["args"])
    labels = OBJECTS["Deployment", "layered-server"]["spec"]["template"]["metadata"]["labels"]
    [selector] = router.selector
    assert selector.split("=") == ["app.kubernetes.io/name", labels["app.kubernetes.io/name"]]
    [port] = container("layered-server")["ports"]
    assert router.service_discovery and router.service_discovery_port == port["containerPort"]
    ports = {port["name"]: port["containerPort"] for port in container("layered-router")["ports"]}
    assert ports == {"http": 30000, "metrics": router.prometheus_port}


def test_the_router_may_watch_pods() -> None:
    pod = OBJECTS["Deployment", "layered-router"]["spec"]["template"]["spec"]
    binding = OBJECTS["RoleBinding", "layered-router"]
    assert [each["name"] for each in binding["subjects"]] == [pod["serviceAccountName"]]
    role = OBJECTS["Role", binding["roleRef"]["name"]]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
