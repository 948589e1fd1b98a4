"""An accepted round's suite is measured on prompts that are never replayed."""

from __future__ import annotations

from pathlib import Path

from align.campaign import run_campaign
from align.round.inputs import load_inputs
from align.round.records.replay import load_replay
from align.store.paths import StorePaths
from tests.unit.campaigns import Starter, Watcher, campaign


def test_suites_of_earlier_rounds_are_made_by_themselves_and_share_nothing_with_replay(
    tmp_path: Path,
) -> None:
    config = campaign(tmp_path)
    watcher = Watcher()
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    accepted = evidence.accepted("policy")
    assert list(accepted) == ["first", "second"]
    replayed = load_replay(StorePaths(config.folder), list(accepted.values())).entries
    suites = {suite.name: suite for suite in load_inputs(config).suites}
    for name in accepted:
        assert suites[name].target_of == name
        assert len(replayed[name]) == 12
        for other in suites.values():
            assert {p.text for p in replayed[name]}.isdisjoint(p.text for p in other.prompts)
    # The second verdict holds the candidate to the first round's suite, with that round's reward.
    second = watcher.verdicts["second"].verdict
    assert ("first", "retention") in {(check.suite, check.role) for check in second.checks}
    assert suites["first"].metric == config.rounds[0].rewards
