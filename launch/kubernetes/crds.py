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
"""Types that ``x-kubernetes-int-or-string`` allows in its ``anyOf``."""
RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
GENERATOR = "controller-gen.kubebuilder.io/version"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crd:
    """Version of one kind of custom resource. Equal to itself only, so that what is made of it can be
    kept."""

    api_version: str
    kind: str
    path: Path
    """File that it was read from."""
    generator: str | None
    """Version of controller-gen that wrote it; None where it does not say."""
    schema: Schema
    """Value of ``openAPIV3Schema``, unchanged."""

    def closed(self) -> dict[str, Any]:
        """Return the JSON Schema of an object of this kind, which refers to ``#/$defs/ObjectMeta``."""
        schema = closed(self.schema)
        common = {
            "apiVersion": {"const": self.api_version},
            "kind": {"const": self.kind},
            # A CRD says only that it is an object; its fields are the API server's own.
            "metadata": {"$ref": "#/$defs/ObjectMeta"},
        }
        schema["properties"] = {**schema.get("properties", {}), **common}
        schema["required"] = sorted({*schema.get("required", ()), *common})
        return schema

    def not_evaluated(self, manifest: object) -> list[str]:
        """List place and text of the CEL rules that would be evaluated when ``manifest`` is created."""
        return list(_rules(self.schema, manifest, ""))


def load_crds(path: Path) -> dict[tuple[str, str], Crd]:
    """Load every served version of every CRD in a file or directly in a folder, by apiVersion and kind.

    What ``kubectl get crd NAME... -o yaml`` prints and what a Helm chart has in ``crds/`` will do; other
    objects are passed over.

    Raises:
        UserError: there is none, or a file cannot be read.
    """
    if not path.exists():
        raise UserError(f"no such file or folder: {path}", where="--crds")
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
    versions = [
        crd for file in files for document in objects(file) for crd in _versions(document, file)
    ]
    if not versions:
        raise UserError(
            f"no CustomResourceDefinition in {path}",
            where="--crds",
            remedy="kubectl get crd rayjobs.ray.io raycronjobs.ray.io -o yaml > crds.yaml",
        )
    return {(crd.api_version, crd.kind): crd for crd in versions}


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
    """Convert a structural schema to JSON Schema in which an object has no field but those that are
    named.

    Args:
        inside: of ``allOf`` and its like, which only add conditions to fields named elsewhere.
    """
    converted = {word: schema[word] for word in CONDITIONS if word in schema} | _bounds(schema)
    for word in ("allOf", "anyOf", "oneOf"):
        if word in schema and schema[word] != INT_OR_STRING:
            converted[word] = [closed(subschema, inside=True) for subschema in schema[word]]
    if "not" in schema:
        converted["not"] = closed(schema["not"], inside=True)
    if "items" in schema:
        converted["items"] = closed(schema["items"], inside=inside)
    properties = schema.get("properties", {})
    if properties:
        converted["properties"] = {
            name: closed(subschema, inside=inside) for name, subschema in properties.items()
        }
    # The server fills in defaults before it looks for what is missing.
    required = [
        name for name in schema.get("required", ()) if "default" not in properties.get(name, {})
    ]
    if required:
        converted["required"] = required
    if schema.get("x-kubernetes-list-type") == "set":
        converted["uniqueItems"] = True
    if not inside and (schema.get("type") == "object" or properties):
        _close(converted, schema)
    _type(converted, schema)
    return converted


def _close(target: dict[str, Any], schema: Schema) -> None:
    others = schema.get("additionalProperties")
    if isinstance(others, Mapping):
        target["additionalProperties"] = closed(others)
    elif not others and not schema.get("x-kubernetes-preserve-unknown-fields"):
        target["additionalProperties"] = False
    if schema.get("x-kubernetes-embedded-resource"):
        common = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}
        target["properties"] = {**common, **target.get("properties", {})}
        target["required"] = sorted({*target.get("required", ()), "apiVersion", "kind"})


def _type(target: dict[str, Any], schema: Schema) -> None:
    if schema.get("x-kubernetes-int-or-string"):
        target["type"] = ["integer", "string"]
    elif "type" in schema:
        target["type"] = [schema["type"]]
    else:
        return
    if schema.get("nullable"):
        target["type"] = [*target["type"], "null"]
        if "enum" in target:
            target["enum"] = [*target["enum"], None]


def _bounds(schema: Schema) -> dict[str, Any]:
    """Convert exclusive bounds, which are flags in OpenAPI v3.0 and numbers in JSON Schema."""
    low, high = RANGES.get(str(schema.get("format")), (None, None))
    bounds: dict[str, Any] = {}
    for word, exclusive, limit in (
        ("minimum", "exclusiveMinimum", low),
        ("maximum", "exclusiveMaximum", high),
    ):
        if word in schema:
            bounds[exclusive if schema.get(exclusive) else word] = schema[word]
        elif limit is not None:
            bounds[word] = limit
    return bounds


def _rules(schema: Schema, value: object, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # What compares with the old object has nothing to compare with in a new one.
        if "oldSelf" not in rule["rule"]:
            yield f"{path or 'at its top'}: {rule['rule']}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, item in value.items():
            below = schema.get("properties", {}).get(name, others)
            if isinstance(below, Mapping):
                yield from _rules(below, item, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(schema.get("items", {}), item, f"{path}.{index}")
