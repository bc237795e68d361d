"""The RayService manifest against KubeRay's own schema, where one has it.

    KUBERAY_CRD=ray.io_rayservices.yaml pytest tests/cluster/test_manifest.py

The file is in KubeRay's Helm chart, or `kubectl get crd rayservices.ray.io -o yaml`. What an API
server would silently drop, a name that the schema does not know, counts as an error here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFEST = Path(__file__).parents[2] / "docker" / "ray" / "rayservice.yaml"
CRD = os.environ.get("KUBERAY_CRD")
VERSION = "v1"


def service() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    (found,) = [each for each in documents if each["kind"] == "RayService"]
    return dict(found)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, with an error for each name that it does not know."""
    found = {key: _strict_value(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "properties" in schema and not open_ended:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def _strict_value(value: Any) -> Any:
    if isinstance(value, dict):
        return strict(value)
    return [_strict_value(each) for each in value] if isinstance(value, list) else value


def problems(document: dict[str, Any], crd: dict[str, Any]) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == VERSION]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    for error in Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message[:200]}"


def small_crd() -> dict[str, Any]:
    """Enough of one to see that the check works."""
    spec = {"type": "object", "properties": {"serveConfigV2": {"type": "string"}}}
    whole = {"type": "object", "properties": {"kind": {"type": "string"}, "spec": spec}}
    return {"spec": {"versions": [{"name": VERSION, "schema": {"openAPIV3Schema": whole}}]}}


@pytest.mark.parametrize(
    ("spec", "says"),
    [({"serveConfigV2": 1}, "not of type"), ({"serveConfig": ""}, "serveConfig")],
)
def test_wrong_types_and_unknown_names_are_found(spec: dict[str, Any], says: str) -> None:
    pytest.importorskip("jsonschema")
    assert any(says in each for each in problems({"kind": "x", "spec": spec}, small_crd()))
    assert not list(problems({"kind": "x", "spec": {"serveConfigV2": ""}}, small_crd()))


@pytest.mark.skipif(CRD is None, reason="KUBERAY_CRD does not name KubeRay's schema")
def test_the_manifest_is_what_kuberay_takes() -> None:
    assert CRD is not None
    assert list(problems(service(), yaml.safe_load(Path(CRD).read_text()))) == []


def test_ray_s_version_is_the_one_that_is_pinned() -> None:
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text()
    assert f"\nray=={service()['spec']['rayClusterConfig']['rayVersion']}\n" in constraints


def test_replicas_and_ingresses_fit_the_nodes() -> None:
    """What Ray sets aside for a node's replica and for all ingresses is there."""
    spec = service()["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    args = application["args"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    ingresses = args["ray_ingress_replicas"] * args.get("ray_ingress_cpus", 1)
    assert args["ray_gpus"] <= limits["nvidia.com/gpu"]
    assert args["ray_cpus"] + ingresses <= int(limits["cpu"])
    assert args["ray_max_replicas"] * args["ray_gpus"] <= (
        group["maxReplicas"] * limits["nvidia.com/gpu"]
    )
