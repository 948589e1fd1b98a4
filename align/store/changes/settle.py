"""Campaign that runs: the file's settings, with those that committed verdicts rest on kept.

`settle` is asked by check, plan and run alike, so that none of them sees a change that another does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.config.campaign import CampaignConfig, RoundConfig, SuiteConfig
from align.store.changes.compare import CampaignComparison, kept
from align.store.changes.earlier_versions import as_read, with_earlier_defaults
from align.store.ledger.amendments import pins_of, stored_content
from align.store.ledger.campaign_row import refused
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.expand import expanded
from align.store.ledger.ledger import Ledger
from align.store.store import known_ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Campaign file and store, compared."""

    stated: CampaignConfig
    """Campaign with the rounds of the file and the schedule, as the store compares and keeps it."""
    config: CampaignConfig
    """Campaign that runs."""
    comparison: CampaignComparison
    due: frozenset[str]
    """Names of rounds that fell due."""
    ledger: Ledger | None
    """The store's ledger; None if there is no store yet."""
    where: str
    """Location of the ledger, for errors."""
    pins: Mapping[str, Mapping[str, Any]]
    """Settings of decided rounds and judged suites that the file's defaults no longer give."""

    def check(self) -> None:
        """Raise StoreError where committed verdicts do not allow what changed."""
        if self.comparison.refusals:
            raise refused(self.stated.name, self.comparison.refusals, self.where)


def settle(
    config: CampaignConfig, ledger: Ledger | None = None, where: str | None = None
) -> Settled:
    """Compare a campaign file with its store, without writing or refusing anything.

    Args:
        ledger: the store's; None: it is looked for, and none is made.
        where: place of the ledger in errors, where ``ledger`` is a copy.

    Raises:
        StoreError: the store holds another campaign.
    """
    known = ledger or known_ledger(config)
    if known is not None:
        config = as_begun(config, known)
    stated = expanded(config, known)
    if known is None:
        return Settled(
            stated=stated,
            config=stated,
            comparison=CampaignComparison(),
            due=frozenset(),
            ledger=None,
            where=str(config.folder),
            pins={},
        )
    where = where or known.database.where
    due = frozenset(claim.spec.name for claim in claimed_rounds(known.database, config.places))
    comparison = known.compare_campaign(
        stated.name, stated.content(), stated.hash(), read=as_read, quiet=due, where=where
    )
    pins = {**comparison.pins, **pins_of(known.database)}
    return Settled(
        stated=stated,
        config=with_pins(stated, pins),
        comparison=comparison,
        due=due,
        ledger=known,
        where=where,
        pins=pins,
    )


def as_begun(config: CampaignConfig, ledger: Ledger) -> CampaignConfig:
    """Return the campaign file's settings with the defaults that its store began with."""
    return with_earlier_defaults(config, stored_content(ledger.database))


def with_pins(config: CampaignConfig, pins: Mapping[str, Mapping[str, Any]]) -> CampaignConfig:
    """Return the campaign with pinned settings instead of what the file's defaults give now."""
    if not pins:
        return config
    rounds = tuple(
        RoundConfig.model_validate(
            kept(spec.model_dump(mode="json"), pins[spec.name], round=True), context=config.places
        )
        if spec.name in pins
        else spec
        for spec in config.rounds
    )
    suites = tuple(
        SuiteConfig.model_validate(
            kept(spec.model_dump(mode="json"), pins[spec.name], round=False), context=config.places
        )
        if spec.name in pins
        else spec
        for spec in config.suites
    )
    return config.model_copy(update={"rounds": rounds, "suites": suites})
