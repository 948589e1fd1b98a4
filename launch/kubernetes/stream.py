"""Streams of YAML: manifests to and from the form that kubectl has them in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollouts.errors import UserError

STANDARD_INPUT = Path("-")


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, with the items of a List one by one; ``-`` is standard input.

    Raises:
        UserError: it cannot be read, or holds something else than objects.
    """
    import yaml

    # A CRD of KubeRay has 30,000 lines: seconds in Python, a tenth of that in C.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text()
        documents = list(yaml.load_all(text, Loader=loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    for document in documents:
        is_list = isinstance(document, dict) and document.get("kind") == "List"
        for item in document.get("items") or () if is_list else (document,):
            if isinstance(item, dict):
                yield item
            elif item is not None:
                raise UserError(f"no object of Kubernetes: {item!r:.60}", where=str(path))


def to_yaml(manifests: Sequence[Mapping[str, Any]], notes: str) -> str:
    """Write one stream that ``kubectl apply -f -`` takes, with the notes as comments at its top."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """YAML dumper that writes texts of several lines as they are."""

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
