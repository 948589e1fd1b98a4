"""Rendered manifests, what can be broken in one, and a CRD made of our extract."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from align.config.campaign import CampaignConfig
from launch.kubernetes.render import Kind, Manifest, Target, render
from launch.kubernetes.schema import types

CAMPAIGN = """\
name: nightly_v1.0
policy: {model: demo://digits, ranks: RANKS, threads: 3}
store: /shared/nightly
rollouts:
  engines: 2
  resources: {cpus: 1.5, custom: {a100: 1}}
rounds:
  - {name: reverse, prompts: demo://rev, rewards: [exact_match], steps: 2}
"""
KINDS: tuple[Kind, ...] = ("rayjob", "raycronjob", "cronjob")
FREE = {"data", "labels", "rayStartParams"}
"""Mappings that take any key."""

Place = tuple[Any, ...]


def campaign(ranks: int = 1) -> str:
    return CAMPAIGN.replace("RANKS", str(ranks))


def made(kind: Kind) -> list[Manifest]:
    """With every option that changes what is written."""
    config = CampaignConfig.model_validate(yaml.safe_load(campaign(2)))
    schedule = None if kind == "rayjob" else "0 3 * * *"
    target = Target(kind=kind, image="keel:1", env=("A",), gpus=True, schedule=schedule)
    return render(config, campaign(2), target)


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Place and value of everything that is neither a mapping nor a list."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, (*place, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from leaves(one, (*place, index))
    else:
        yield place, value


def keys(value: Any, place: Place = ()) -> Iterator[Place]:
    """Place of every key of a mapping that does not take any key."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not FREE & set(place[-1:]):
                yield (*place, key)
            yield from keys(one, (*place, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from keys(one, (*place, index))


def changed(manifest: Manifest, place: Place, change: Any) -> Manifest:
    """A copy in which ``change(parent, last step of place)`` was done."""
    copied = copy.deepcopy(manifest)
    parent: Any = copied
    for step in place[:-1]:
        parent = parent[step]
    change(parent, place[-1])
    return copied


def structural(schema: Mapping[str, Any], path: Sequence[str] = ()) -> dict[str, Any]:
    """One definition of our extract in the form that controller-gen gives to a CRD: references written
    out, objects open, integers by format."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        special = {
            "int32": {"type": "integer", "format": "int32"},
            "int64": {"type": "integer", "format": "int64"},
            "IntOrString": {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "x-kubernetes-int-or-string": True,
            },
            "Quantity": {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "pattern": types()["Quantity"]["pattern"],
                "x-kubernetes-int-or-string": True,
            },
        }
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**(special.get(name) or structural(types()[name], (*path, name))), **own}
    if "const" in schema:
        return {"type": "string"}
    out = {key: value for key, value in schema.items() if key not in ("oneOf", "uniqueItems")}
    out.pop("additionalProperties", None)
    if "x-kubernetes-list-map-keys" in out:
        out["x-kubernetes-list-type"] = "map"
    if schema.get("uniqueItems"):
        out["x-kubernetes-list-type"] = "set"
    if "items" in out:
        out["items"] = structural(out["items"], path)
    if "properties" in out:
        out["properties"] = {
            key: structural(one, (*path, key)) for key, one in out["properties"].items()
        }
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = structural(schema["additionalProperties"], path)
    if path and path[-1] == "WorkerGroupSpec":
        out["required"] = ["groupName", "maxReplicas", "minReplicas", "template"]
        out["properties"]["minReplicas"]["default"] = 0
        out["properties"]["maxReplicas"]["default"] = 2147483647
    if "managedBy" in out.get("properties", {}):
        out["properties"]["managedBy"]["x-kubernetes-validations"] = [{"rule": "self == oldSelf"}]
    if path and path[-1] == "DeletionStrategy":
        rule = "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))"
        out["x-kubernetes-validations"] = [{"rule": rule}]
    return out


def crd(kind: str) -> dict[str, Any]:
    """As ``kubectl get crd`` has it."""
    schema = structural({"$ref": f"#/$defs/{kind}"})
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["status"] = {"type": "object", "properties": {}}
    del schema["required"]
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.lower()}s.ray.io",
            "annotations": {"controller-gen.kubebuilder.io/version": "v0.16.5"},
        },
        "spec": {
            "group": "ray.io",
            "names": {"kind": kind, "plural": f"{kind.lower()}s"},
            "scope": "Namespaced",
            "versions": [version],
        },
    }
