"""Rounds that the settings of later rounds name, as anchor, teacher, merge or reward model."""

from __future__ import annotations

from collections.abc import Iterable

from align.config.campaign import CampaignConfig, RoundConfig
from align.errors import UserError
from align.gate.evidence import Evidence
from align.store.ledger.ledger import Ledger
from align.store.store import store_to_read


def check_named_rounds(rounds: Iterable[RoundConfig], evidence: Evidence) -> None:
    """Check that what rounds to come name as ``round:NAME`` was accepted, or has yet to run.

    Raises:
        UserError: a named round was rejected, or production was moved back behind it.
    """
    closed = evidence.ledger.closed()
    for spec in rounds:
        for setting, makes, name in () if spec.name in closed else spec.named_rounds():
            if name not in closed or name in evidence.accepted(makes):
                continue
            states = {record.name: record.state for record in evidence.ledger.rounds()}
            is_behind = states.get(name) == "accepted"
            raise UserError(
                f"{setting} names round:{name}, "
                + (
                    "and production was moved back behind it"
                    if is_behind
                    else f"which was {states.get(name, 'skipped')}"
                ),
                where=f"round {spec.name!r}",
                cause="only accepted rounds that production goes back to have weights that others may use",
                remedy=f"name another round or parent in {setting}"
                + (
                    f", or move production forward again: keel promote FILE --to {name}"
                    if is_behind
                    else ""
                ),
            )


def check_stored_named_rounds(config: CampaignConfig, ledger: Ledger) -> None:
    """Check `check_named_rounds` of a whole campaign, for a command that starts nothing.

    Args:
        ledger: of the store, or a copy of it.
    """
    rounds = [spec for spec in config.rounds if next(spec.named_rounds(), None) is not None]
    if rounds and ledger.closed():
        check_named_rounds(rounds, Evidence(store=store_to_read(config, ledger), config=config))
