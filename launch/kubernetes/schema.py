"""Manifests held against the types of Kubernetes and KubeRay, before anybody sees them.

`schemas/kubernetes.json` and `schemas/kuberay.json` are extracts of those types at a named version. They
are closed: a field that they do not name is an error, because the API server would drop it without a word.
`schemas/rules.json` has what the API server and the operator check besides types. The CRDs of a cluster
(`launch.kubernetes.crds`) take the place of the extract where they are at hand.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollouts.errors import UserError

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

    from launch.kubernetes.crds import Crd

SCHEMAS = Path(__file__).with_name("schemas")
KUBERNETES, KUBERAY = "Kubernetes v1.34.0", "KubeRay v1.7.0"
KINDS: Mapping[tuple[str, str], str] = {
    ("v1", "ConfigMap"): KUBERNETES,
    ("batch/v1", "CronJob"): KUBERNETES,
    ("ray.io/v1", "RayJob"): KUBERAY,
    ("ray.io/v1", "RayCronJob"): KUBERAY,
}
"""Kinds of manifests by apiVersion and kind, each with the origin of its types."""

Crds = Mapping[tuple[str, str], "Crd"]
"""CRDs by apiVersion and kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Field that a cluster would not take."""

    where: str
    """Path in the manifest, such as ``spec.rayClusterSpec.rayVersion``."""
    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        remedy = "" if self.remedy is None else f"; {self.remedy}"
        return f"{self.where}: {self.what}{remedy}"


def check_manifest(manifest: Mapping[str, Any], crds: Crds | None = None) -> None:
    """Raise `UserError` for the first field that a cluster would not take."""
    crd = (crds or {}).get(identity(manifest))
    for problem in problems(manifest, crds):
        raise UserError(
            problem.what,
            where=f"{manifest.get('kind')}: {problem.where}",
            cause=f"{crd.path} is not of {KUBERAY}, for which this is written" if crd else None,
            remedy="update the operator and its CRDs"
            if crd
            else "change the option or the name in the campaign file that it comes from",
        )


def problems(manifest: Mapping[str, Any], crds: Crds | None = None) -> list[Problem]:
    """List everything that is wrong with a manifest, types before rules.

    Args:
        crds: of a cluster; they, and not the extract, say what a kind of theirs looks like.

    Raises:
        UserError: there is nothing to hold it against.
    """
    kind = identity(manifest)
    validators = [_types_of(kind, crds)]
    if kind[1] in _definitions("rules.json"):
        validators.append(_named("rules.json", kind[1]))
    return [
        _problem(error)
        for validator in validators
        for error in sorted(validator.iter_errors(manifest), key=_order)
    ]


def identity(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return the apiVersion and the kind of a manifest."""
    return str(manifest.get("apiVersion")), str(manifest.get("kind"))


def types() -> dict[str, Any]:
    """Return every definition of the two extracts by its name."""
    return {**_definitions("kubernetes.json"), **_definitions("kuberay.json")}


def _types_of(kind: tuple[str, str], crds: Crds | None) -> Validator:
    if crds is not None and kind in crds:
        return _of(crds[kind])
    if kind in KINDS and (crds is None or KINDS[kind] == KUBERNETES):
        return _named("types", kind[1])
    api, name = kind
    if crds is None:
        kinds = ", ".join(sorted(kind for _, kind in KINDS))
        raise UserError(f"nothing is known of kind {name} in {api}", remedy=f"Known: {kinds}")
    plural = f"{name.lower()}s.{api.partition('/')[0]}"
    raise UserError(
        f"none of the CRDs is that of {name} in {api}",
        where="--crds",
        cause="the operator is of an older version, or this CRD is missing from the folder",
        remedy=f"kubectl get crd {plural} -o yaml > FOLDER/{plural}.yaml",
    )


@cache
def _definitions(name: str) -> dict[str, Any]:
    definitions: dict[str, Any] = json.loads((SCHEMAS / name).read_text())["$defs"]
    return definitions


@cache
def _named(name: str, kind: str) -> Validator:
    """Make a validator of one definition of a file, or of both extracts."""
    definitions = types() if name == "types" else _definitions(name)
    return _validator_class()({"$ref": f"#/$defs/{kind}", "$defs": definitions})


@cache
def _of(crd: Crd) -> Validator:
    return _validator_class()({**crd.closed(), "$defs": types()})


@cache
def _validator_class() -> type[Validator]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    validator_class: type[Validator] = extend(
        Draft202012Validator, {"x-kubernetes-list-map-keys": _unique_keys}
    )
    return validator_class


def _unique_keys(
    validator: object, keys: Sequence[str], items: object, schema: object
) -> Iterator[ValidationError]:
    """Check that a list that is a map has each key once."""
    from jsonschema import ValidationError

    earlier = set()
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        key = tuple(repr(item.get(name)) for name in keys)
        if key in earlier:
            yield ValidationError(f"{', '.join(key)} stands there twice")
        earlier.add(key)


def _order(error: ValidationError) -> tuple[str, str]:
    return error.json_path, str(error.validator)


def _problem(error: ValidationError) -> Problem:
    where = ".".join(map(str, error.absolute_path)) or "at its top"
    value, wanted = error.instance, error.validator_value
    shown = reprlib.repr(value)
    if title := error.schema.get("title"):
        what = title if isinstance(value, dict) else f"{shown} cannot stand there: {title}"
        return Problem(where=where, what=what)
    if error.validator == "additionalProperties" and wanted is False:
        fields = sorted(error.schema.get("properties", {}))
        name = str(next(key for key in value if key not in fields))
        return Problem(where=where, what=f"no field {name!r} there", remedy=_nearest(name, fields))
    if error.validator == "required":
        return Problem(where=where, what=f"{_missing(wanted, value)!r} is missing")
    if error.validator == "type":
        types = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return Problem(where=where, what=f"{shown} cannot stand there, only {_article(types)}")
    if error.validator == "x-kubernetes-list-map-keys":
        return Problem(where=where, what=error.message)
    return Problem(where=where, what=f"{shown} cannot stand there ({error.validator}: {wanted!r})")


def _nearest(name: str, fields: Sequence[str]) -> str:
    close = get_close_matches(name, fields, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(fields) or 'none'}"


def _missing(required: Sequence[str], value: Mapping[str, Any]) -> str:
    return next(name for name in required if name not in value)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
