"""A campaign file as it was understood: what it states, or every value and where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from align.config.file import CampaignFile

WIDEST = 120
"""Most characters before an origin; longer values push theirs to the right."""
LONGEST = 1 << 20
"""Characters of a line, after which a text would be broken."""


def stated_yaml(file: CampaignFile) -> str:
    """Write the file's own values as YAML, with overrides applied."""
    return yaml.safe_dump(file.raw, sort_keys=False).rstrip()


def resolved_lines(file: CampaignFile) -> list[str]:
    """List every setting as ``key: value  # origin``; origins: --set, file, defaults, built-in."""
    leaves = list(_leaves(file.config.model_dump(mode="json")))
    width = min(WIDEST, max(len(f"{key}: {value}") for key, value in leaves))
    lines = []
    for key, value in leaves:
        steps, origin = key.split("."), "built-in"
        if any(key == path or key.startswith(f"{path}.") for path in file.overridden):
            origin = "--set"
        elif _stated(file.raw, steps):
            origin = "file"
        elif steps[0] == "rounds" and _stated(file.raw, ["defaults", *steps[2:]]):
            origin = "defaults"
        lines.append(f"{f'{key}: {value}':<{width}}  # {origin}")
    return lines


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    nested = list(children)
    if not nested:
        yield path, on_a_line(value)
    for key, child in nested:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def on_a_line(value: Any) -> str:
    """Write a value as YAML without a line break; line breaks within a text become ``\\n``."""
    broken = isinstance(value, str) and value.splitlines() not in ([], [value])
    style = '"' if broken else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=LONGEST)
    return text.split("\n")[0]


def _stated(value: Any, steps: list[str]) -> bool:
    """Tell if the raw file says something at this path, or a short form above it."""
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return value is not None and not isinstance(value, dict | list)
    return True
