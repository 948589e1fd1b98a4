"""Manifests against a schema of exactly the fields that are written, before anybody sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollouts.errors import UserError

SCHEMA = Path(__file__).with_name("schema.json")


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise `UserError` for the first field that Kubernetes would not take."""
    from jsonschema import Draft202012Validator

    whole = json.loads(SCHEMA.read_text())
    kind = str(manifest.get("kind"))
    name = kind[:1].lower() + kind[1:]
    if name not in whole["$defs"]:
        raise UserError(f"not a kind that is written here: {kind!r}")
    schema = {"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]}
    for error in Draft202012Validator(schema).iter_errors(manifest):
        place = ".".join(map(str, error.absolute_path)) or kind
        raise UserError(
            f"{error.instance!r} cannot stand there ({error.validator}: {error.validator_value!r})",
            where=f"{kind}: {place}",
            remedy="change the option or the name in the campaign file that it comes from",
        )


def to_yaml(manifests: Sequence[Mapping[str, Any]], notes: str) -> str:
    """One YAML stream that ``kubectl apply -f -`` takes, with the notes as comments at its top."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of several lines as they are."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    head = "".join(f"# {line}\n" for line in notes.splitlines())
    return head + "---\n".join(
        yaml.dump(dict(one), Dumper=Dumper, sort_keys=False, width=1000) for one in manifests
    )
