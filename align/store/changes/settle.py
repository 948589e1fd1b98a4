"""Campaign that runs: the file's settings, with those that committed verdicts rest on kept.

`settle` is asked by check, plan and run alike, so that none of them sees a change that another does not.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from align.config.campaign import CampaignConfig, RoundConfig, SuiteConfig
from align.store.changes.compare import CampaignComparison, kept
from align.store.changes.earlier_versions import as_read, with_earlier_defaults
from align.store.changes.expand import expanded
from align.store.ledger.amendments import pins_of, stored_content
from align.store.ledger.campaign_row import refused
from align.store.ledger.due_rounds import claimed_names
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
    content: Mapping[str, Any]
    """Content of ``stated`` as the store keeps it, see `recorded_content`; ``content_hash`` is its hash."""
    content_hash: str
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
            content=stated.content(),
            content_hash=stated.hash(),
            config=stated,
            comparison=CampaignComparison(),
            due=frozenset(),
            ledger=None,
            where=str(config.folder),
            pins={},
        )
    where = where or known.database.where
    due = claimed_names(known.database)
    content, content_hash = recorded_content(stated, due)
    comparison = known.compare_campaign(
        stated.name, content, content_hash, read=as_read, quiet=due, where=where
    )
    pins = {**comparison.pins, **pins_of(known.database)}
    return Settled(
        stated=stated,
        content=content,
        content_hash=content_hash,
        config=with_pins(stated, pins),
        comparison=comparison,
        due=due,
        ledger=known,
        where=where,
        pins=pins,
    )


def recorded_content(config: CampaignConfig, due: Collection[str]) -> tuple[dict[str, Any], str]:
    """Return the content of a campaign and its hash, with rounds that fell due by their names alone.

    Their settings lie in the ledger's claims, once and for good: the campaign's own row stays as short as
    its file, however many nights there were.
    """
    if not due:
        return config.content(), config.hash()
    plain = tuple(spec for spec in config.rounds if spec.name not in due)
    content = config.model_copy(update={"rounds": plain}).content()
    specs = {spec["name"]: spec for spec in content["rounds"]}
    content["rounds"] = [specs.get(s.name, {"name": s.name}) for s in config.rounds]
    return content, sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
