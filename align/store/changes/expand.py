"""A campaign file and what fell due -> the campaign of plain rounds that runs and is reported.

Rounds that the ledger knows keep their place for good; after them come plain rounds of the file, then what
fell due, in the order it did. So a round that is appended changes nothing before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from align.config.campaign import CampaignConfig, RoundConfig
from align.store.auto import without_auto
from align.store.ledger.amendments import dropped_for_good
from align.store.ledger.due_rounds import claimed_rounds
from align.store.ledger.ledger import Ledger


def expand(
    config: CampaignConfig, planned: Sequence[str], claimed: Sequence[RoundConfig]
) -> CampaignConfig:
    """Return the campaign with concrete rounds.

    Args:
        planned: names of the ledger's rounds, in order.
        claimed: rounds that fell due, in order.
    """
    places = dict.fromkeys(planned)
    specs = {
        spec.name: spec for spec in config.rounds if not spec.scheduled or spec.name in places
    } | {spec.name: spec for spec in claimed}
    known = [name for name in planned if name in specs]
    order = [*known, *(name for name in specs if name not in places)]
    return config.model_copy(update={"rounds": tuple(specs[name] for name in order)})


def expanded(config: CampaignConfig, ledger: Ledger | None) -> CampaignConfig:
    """Apply `expand` with the ledger's rounds, resolve ``auto``, and leave dropped rounds out.

    Args:
        ledger: None: there is no store yet.
    """
    if ledger is None:
        return without_auto(expand(config, (), ()), None)
    dropped = dropped_for_good(ledger.database)
    if any(spec.name in dropped for spec in config.rounds):
        plain = tuple(spec for spec in config.rounds if spec.name not in dropped)
        config = config.model_copy(update={"rounds": plain})
    claimed = [claim.spec for claim in claimed_rounds(ledger.database, config.places)]
    if claimed or any(spec.scheduled for spec in config.rounds):
        config = expand(config, [record.name for record in ledger.rounds()], claimed)
    return without_auto(config, ledger)
