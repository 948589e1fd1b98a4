"""The CustomResourceDefinitions of a cluster, from files, as JSON Schema.

A CRD holds a structural schema: OpenAPI v3 with a few words of Kubernetes' own. The API server drops the
fields that such a schema does not name; here they are an error. Its CEL rules
(``x-kubernetes-validations``) are listed and not evaluated.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.kubernetes.stream import objects
from rollouts.errors import UserError

Schema = Mapping[str, Any]

SUFFIXES = (".yaml", ".yml", ".json")
CONDITIONS = (
    "enum", "pattern", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems",
    "minProperties", "maxProperties", "x-kubernetes-list-map-keys",
)  # fmt: skip
"""Words that mean the same in both."""
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
"""What ``x-kubernetes-int-or-string`` has as its ``anyOf``, beside saying so itself."""
RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
GENERATOR = "controller-gen.kubebuilder.io/version"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crd:
    """One version of one kind. Equal to itself only, so that what is made of it can be kept."""

    api_version: str
    kind: str
    path: Path
    """Where it was read."""
    generator: str | None
    """Version of controller-gen that wrote it; None where it does not say."""
    schema: Schema
    """Its ``openAPIV3Schema`` as it is."""

    def closed(self) -> dict[str, Any]:
        """What an object of this kind has to be, as JSON Schema that refers to ``#/$defs/ObjectMeta``."""
        made = closed(self.schema)
        own = {
            "apiVersion": {"const": self.api_version},
            "kind": {"const": self.kind},
            # A CRD says only that it is an object; its fields are the API server's own.
            "metadata": {"$ref": "#/$defs/ObjectMeta"},
        }
        made["properties"] = {**made.get("properties", {}), **own}
        made["required"] = sorted({*made.get("required", ()), *own})
        return made

    def not_evaluated(self, manifest: object) -> list[str]:
        """Place and text of the CEL rules that would be evaluated when ``manifest`` is created."""
        return list(_rules(self.schema, manifest, ""))


def load_crds(path: Path) -> dict[tuple[str, str], Crd]:
    """Every served version of every CRD in a file or directly in a folder, by apiVersion and kind.

    What ``kubectl get crd NAME... -o yaml`` prints and what a Helm chart has in ``crds/`` will do; other
    objects are passed over.

    Raises:
        UserError: there is none, or a file cannot be read.
    """
    if not path.exists():
        raise UserError(f"no such file or folder: {path}", where="--crds")
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    found = [crd for file in files for one in objects(file) for crd in _versions(one, file)]
    if not found:
        raise UserError(
            f"no CustomResourceDefinition in {path}",
            where="--crds",
            remedy="kubectl get crd rayjobs.ray.io raycronjobs.ray.io -o yaml > crds.yaml",
        )
    return {(crd.api_version, crd.kind): crd for crd in found}


def _versions(crd: Mapping[str, Any], path: Path) -> Iterator[Crd]:
    if crd.get("kind") != "CustomResourceDefinition":
        return
    try:
        spec = crd["spec"]
        for version in spec["versions"]:
            if version["served"]:
                yield Crd(
                    api_version=f"{spec['group']}/{version['name']}",
                    kind=spec["names"]["kind"],
                    path=path,
                    generator=crd["metadata"].get("annotations", {}).get(GENERATOR),
                    schema=version["schema"]["openAPIV3Schema"],
                )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a CustomResourceDefinition without {error}",
            where=str(path),
            cause="it is cut off, or of apiextensions.k8s.io/v1beta1, which Kubernetes 1.22 gave up",
        ) from None


def closed(schema: Schema, *, inside: bool = False) -> dict[str, Any]:
    """A structural schema as JSON Schema in which an object has no field but those that are named.

    Args:
        inside: of ``allOf`` and its like, which only add conditions to fields named elsewhere.
    """
    made = {word: schema[word] for word in CONDITIONS if word in schema} | _bounds(schema)
    for word in ("allOf", "anyOf", "oneOf"):
        if word in schema and schema[word] != INT_OR_STRING:
            made[word] = [closed(one, inside=True) for one in schema[word]]
    if "not" in schema:
        made["not"] = closed(schema["not"], inside=True)
    if "items" in schema:
        made["items"] = closed(schema["items"], inside=inside)
    properties = schema.get("properties", {})
    if properties:
        made["properties"] = {name: closed(one, inside=inside) for name, one in properties.items()}
    # The server fills in defaults before it looks for what is missing.
    required = [
        name for name in schema.get("required", ()) if "default" not in properties.get(name, {})
    ]
    if required:
        made["required"] = required
    if schema.get("x-kubernetes-list-type") == "set":
        made["uniqueItems"] = True
    if not inside and (schema.get("type") == "object" or properties):
        _close(made, schema)
    _type(made, schema)
    return made


def _close(made: dict[str, Any], schema: Schema) -> None:
    others = schema.get("additionalProperties")
    if isinstance(others, Mapping):
        made["additionalProperties"] = closed(others)
    elif not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-embedded-resource"):
        own = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}
        made["properties"] = {**own, **made.get("properties", {})}
        made["required"] = sorted({*made.get("required", ()), "apiVersion", "kind"})


def _type(made: dict[str, Any], schema: Schema) -> None:
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    elif "type" in schema:
        made["type"] = [schema["type"]]
    else:
        return
    if schema.get("nullable"):
        made["type"] = [*made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]


def _bounds(schema: Schema) -> dict[str, Any]:
    """In OpenAPI v3.0 an exclusive bound is a flag, in JSON Schema a number."""
    low, high = RANGES.get(str(schema.get("format")), (None, None))
    made: dict[str, Any] = {}
    for word, exclusive, limit in (
        ("minimum", "exclusiveMinimum", low),
        ("maximum", "exclusiveMaximum", high),
    ):
        if word in schema:
            made[exclusive if schema.get(exclusive) else word] = schema[word]
        elif limit is not None:
            made[word] = limit
    return made


def _rules(schema: Schema, value: object, place: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # What compares with the old object has nothing to compare with in a new one.
        if "oldSelf" not in rule["rule"]:
            yield f"{place or 'at its top'}: {rule['rule']}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, one in value.items():
            below = schema.get("properties", {}).get(name, others)
            if isinstance(below, Mapping):
                yield from _rules(below, one, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _rules(schema.get("items", {}), one, f"{place}.{index}")
