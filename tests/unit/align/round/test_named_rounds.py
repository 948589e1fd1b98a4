"""Anchors, teachers and merges that name an earlier round, which was rejected or rolled back."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config.campaign import CampaignConfig
from align.round.records.named_rounds import check_stored_named_rounds
from align.store.ledger.lineage import move_production
from rollouts.errors import UserError
from tests.unit.campaigns import campaign, rounds
from tests.unit.stores import BETTER, GOOD, HARMFUL, made


def next_campaign(folder: Path, name: str) -> CampaignConfig:
    """Build the campaign of three decided rounds and one to come, which is anchored to one of them."""
    anchored = {"anchors": {"past": {"to": f"round:{name}", "beta": 1.0}}}
    return campaign(folder, rounds=rounds({}, {}, {}, anchored))


def test_a_round_to_come_may_name_accepted_rounds_alone(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, HARMFUL, BETTER)
    first, second, third = (record.name for record in evidence.ledger.rounds())
    for accepted in (first, third):
        check_stored_named_rounds(next_campaign(tmp_path, accepted), evidence.ledger)
    with pytest.raises(UserError, match="which was rejected") as rejected:
        check_stored_named_rounds(next_campaign(tmp_path, second), evidence.ledger)
    assert "name another round or parent in anchors" in str(rejected.value)
    candidate = evidence.ledger.rounds()[0].candidate
    assert candidate is not None
    move_production(evidence.ledger, candidate, back=True, reason="the third was wrong")
    check_stored_named_rounds(next_campaign(tmp_path, first), evidence.ledger)
    with pytest.raises(UserError, match="production was moved back behind it") as behind:
        check_stored_named_rounds(next_campaign(tmp_path, third), evidence.ledger)
    assert f"keel promote FILE --to {third}" in str(behind.value)
