"""Python files and modules that hold a campaign's rewards, metrics, tools and environments, by content."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.settings import StatedPath
from align.store.ledger.amendments import note_amendment, note_code
from align.store.ledger.ledger import Ledger

SHOWN = 12
"""Digits of a hash that a sentence shows."""


def code_of(config: CampaignConfig) -> dict[str, str]:
    """Return the sha256 of every file or module of a reward, metric, tool or environment, by its name in
    the campaign."""
    files: dict[str, str] = {}
    rewards = [reward for spec in config.rounds for reward in (*spec.rewards, *spec.gold)]
    rewards += [suite.metric for suite in config.suites if suite.metric is not None]
    acting = [name for owner in (*config.rounds, *config.suites) for name in owner.code_names]
    for name in (*(reward.name for reward in rewards), *acting):
        stated = name.stated if isinstance(name, StatedPath) else name
        location = name.rpartition(":")[0]
        path = Path(location) if location.endswith(".py") else _module_file(location)
        if path is not None and path.is_file():
            files[stated.rpartition(":")[0]] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def _module_file(name: str) -> Path | None:
    """Return the file of ``pkg.mod`` without importing it; None if there is none, as for a shipped name."""
    outermost, *below = name.split(".")
    try:
        spec = find_spec(outermost) if outermost else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        stem = Path(folder, *below)
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


def record_code(config: CampaignConfig, ledger: Ledger, who: str) -> list[str]:
    """Record the code that runs now; return one sentence per file that changed since last time.

    Suites whose metric has changed are measured again, since their hash covers the code; verdicts that were
    drawn before stay as they are.
    """
    changed = note_code(ledger.database, code_of(config))
    sentences = [
        f"{name}: code {old[:SHOWN]} -> {new[:SHOWN]}" for name, (old, new) in changed.items()
    ]
    if sentences:
        note_amendment(ledger, sentences, who=who)
    return sentences
