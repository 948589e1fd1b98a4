"""A campaign file as it was understood: what it states, or every value and where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from align.config.file import CampaignFile


def stated_yaml(file: CampaignFile) -> str:
    """Return the file's own values with overrides applied, as YAML."""
    return yaml.safe_dump(file.raw, sort_keys=False).rstrip()


def resolved_lines(file: CampaignFile) -> list[str]:
    """List every setting as ``key: value  # origin``; origins: --set, file, defaults, built-in."""
    leaves = list(_leaves(file.config.model_dump(mode="json")))
    width = max(len(f"{key}: {value}") for key, value in leaves)
    return [f"{f'{key}: {value}':<{width}}  # {_origin(file, key)}" for key, value in leaves]


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
        yield path, yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    for key, child in nested:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _origin(file: CampaignFile, key: str) -> str:
    steps = key.split(".")
    if any(key == overridden or key.startswith(f"{overridden}.") for overridden in file.overridden):
        return "--set"
    if _stated(file.raw, steps):
        return "file"
    if steps[0] == "rounds" and _stated(file.raw, ["defaults", *steps[2:]]):
        return "defaults"
    return "built-in"


def _stated(value: Any, steps: list[str]) -> bool:
    """Tell if the raw file has a value at this path, or a short form above it."""
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return value is not None and not isinstance(value, dict | list)
    return True
