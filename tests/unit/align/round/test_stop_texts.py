"""Answers that a round asks of other snapshots end at stop texts, as its own do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.round.session import seed_of
from rollouts.engines.protocol import RolloutEngine, SampleRequest, Ticket
from tests.unit.align.round.test_index_rounds import GENERAL
from tests.unit.align.round.test_override_rounds import WRONG
from tests.unit.campaigns import Starter, Watcher, campaign, rounds
from tests.unit.hf_engine import HFEngine


class Noting(HFEngine):
    """An engine that notes the stop texts of every request by the seed that its id begins with."""

    def submit(self, requests: Sequence[SampleRequest]) -> Ticket:
        stops = vars(self).setdefault("stops", {})
        for request in requests:
            seed = int(request.id.partition("/")[0])
            stops.setdefault(seed, set()).add(request.sampling.stop_texts)
        return super().submit(requests)


class NotingStarter(Starter):
    def __call__(self, config: CampaignConfig, model: Path, context: int) -> RolloutEngine:
        self.engines.append(Noting(model))
        return self.engines[-1]


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[str, ...]]]:
    """Stop texts by the name of a seed; the last round overrides the first."""
    answers = {"answers": {"share": 0.3, "by": "confidence"}, "general_answers": "stored"}
    replay: dict[str, Any] = {"past": 0.2, "general": 0.2, "general_prompts": "demo://general?n=20"}
    few = {"items": 8}
    sampling = {"group_size": 2, "prompts_per_step": 4, "max_tokens": 6}
    config = campaign(
        tmp_path_factory.mktemp("stops"),
        rounds=rounds(
            {"sampling": {**sampling, "stop": ["7"]}, "replay": replay, "suite": few},
            {
                "sampling": {**sampling, "stop": ["8"]},
                "replay": {**replay, **answers},
                "prompts": "demo://inc?n=60",
                "suite": few,
            },
            {
                "sampling": {**sampling, "stop": ["9"]},
                "replay": replay,
                "prompts": "demo://rev?n=40",
                "rewards": [WRONG],
                "overrides": "round0",
                "suite": few,
            },
        ),
        gate={"mode": "observe"},
        suites=[GENERAL],
    )
    starter = NotingStarter()
    run_campaign(config, start_engine=starter, observer=Watcher())
    noted: dict[int, set[tuple[str, ...]]] = vars(starter.engines[0])["stops"]
    return {name: noted.get(seed_of(config.seed, name), set()) for name in ASKED}


ASKED = {
    "round1/answers": ("8",),
    "general": ("8",),
    "override/round2/round0": ("7",),
    "override/round2/its parent": ("7",),
}
"""Stop texts by a seed: of answers of the parent, of the base, and of those that rewards compare."""


@pytest.mark.parametrize("name", ASKED)
def test_answers_of_other_snapshots_end_at_the_rounds_stop_texts(
    stops: dict[str, set[tuple[str, ...]]], name: str
) -> None:
    assert stops[name] == {ASKED[name]}
