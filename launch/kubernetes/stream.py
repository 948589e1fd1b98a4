"""Manifests as one stream of YAML, as kubectl takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def to_yaml(manifests: Sequence[Mapping[str, Any]], notes: str) -> str:
    """Write manifests as one stream for ``kubectl apply -f -``, with the notes as comments at its top."""
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
        yaml.dump(dict(manifest), Dumper=Dumper, sort_keys=False, width=1000)
        for manifest in manifests
    )
