"""Notes on how a campaign would run on this machine, for people who check it first."""

from __future__ import annotations

import os
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.data.base_model import resolve_model
from align.report.forecast.fit import check_addresses, check_kv_cache, fit_lines
from align.store.auto import auto_lines
from align.store.changes.expand import expanded
from align.store.ledger.copy import ledger_copy
from align.store.store import known_ledger
from rollouts.engines import backend_named
from rollouts.machine.device import resolve_device


def machine_lines(config: CampaignConfig, model: Path, context: int) -> list[str]:
    """Return lines on ``auto`` settings, what is slow and what is tight; the store is only read.

    Args:
        context: prompt plus completion, in tokens, that engines are started for.

    Raises:
        UserError: the engines' backend is not installed, or an engine could not hold one sequence.
    """
    with ledger_copy(config) as ledger:
        chosen = expanded(config, ledger)
    lines = list(auto_lines(config, chosen))
    if is_local(None):
        backend_named(config.rollouts.backend).check_installed()
    if not runs_here(None):
        return lines
    check_kv_cache(model, context, chosen)
    check_addresses(model, chosen)
    return [*lines, *fit_lines(model, context, chosen)]


def runs_here(address: str | None) -> bool:
    """Tell if engines run on this machine's processors: no cluster is named, and there is no GPU."""
    return is_local(address) and resolve_device("auto") == "cpu"


def is_local(address: str | None) -> bool:
    """Tell if engines run on this machine: no cluster is named."""
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def check_machine(config: CampaignConfig, address: str | None) -> None:
    """Check that a run could start its engines here; a joined cluster checks for itself."""
    from align.round.inputs import context_of

    if is_local(address):
        backend_named(config.rollouts.backend).check_installed()
    if not runs_here(address):
        return
    model = resolve_model(config.policy)
    if config.policy.dtype == "auto":
        config = expanded(config, known_ledger(config))
    try:
        check_kv_cache(model, context_of(model, config), config)
        check_addresses(model, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # A folder that cannot be read is told of by whoever loads it.
