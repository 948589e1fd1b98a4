"""Two whole rounds under each method that other tests do not run: killed, gone on with, and accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.align.round.test_retention_rounds import LORA, campaign_under, run, weights
from tests.unit.campaigns import Copying, raw_campaign

FULL = {"model": "demo://digits"}
FRESH = {"model": "demo://digits", "lora": {"rank": 2, "alpha": 4.0, "merge": True}}
DPO = [{**spec, "algorithm": "dpo"} for spec in raw_campaign(Path())["rounds"]]
COPR = [{**spec, "algorithm": "copr"} for spec in raw_campaign(Path())["rounds"]]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "si, lora": ({"name": "si", "strength": 1000.0}, LORA),
    "mas": ({"name": "mas", "strength": 0.1, "samples": 4}, FULL),
    "cpo_mask": ({"name": "cpo_mask", "strength": 1.0}, FULL),
    "agem": ({"name": "agem"}, FULL),
    "ogd, lora": ({"name": "ogd", "samples": 4}, LORA),
    "gpm, lora": ({"name": "gpm", "samples": 4, "energy": 0.5}, LORA),
    "hft": ({"name": "hft"}, FULL),
    "mofo": ({"name": "mofo"}, FULL),
    "migu, lora": ({"name": "migu"}, LORA),
    "trust_region": ({"name": "trust_region"}, FULL),
    "o_lora": ({"name": "o_lora"}, FRESH),
    "n_lora": ({"name": "n_lora"}, FRESH),
    "inflora": ({"name": "inflora", "samples": 4, "energy": 0.5}, FRESH),
    "copr": ({"name": "copr", "stored": 4, "per_step": 2}, FULL),
    "anchors that follow": (
        {
            "name": "kl_anchors",
            "new": [
                {"to": "parent", "beta": 0.05, "follow": {"every": 1, "share": 0.5}},
                # Two steps are one gain, and no reward gains as much.
                {"to": "parent", "beta": 0.05, "follow": {"after_stagnation": 1, "gain": 2.0}},
            ],
        },
        FULL,
    ),
    "a reference that follows, lora": (
        {
            "name": "kl_anchors",
            "new": {"to": "parent", "beta": 1.0, "follow": {"share": 0.6}},
        },
        LORA,
    ),
}
"""Method and policy."""
ROUNDS: dict[str, dict[str, Any]] = {
    "a reference that follows, lora": {"rounds": DPO},
    "copr": {"rounds": COPR},
}
"""Changes of the campaign."""
MOVES: dict[str, dict[str, float]] = {
    "anchors that follow": {
        "moves/new/parent~0.5/1": 2.0,
        "moves/new/parent~1/stagnation1": 1.0,
    },
    "a reference that follows, lora": {"moves/new/parent~0.6/1": 2.0},
}
"""Moves that the last step of a round reports."""


QUICK = {"agem", "gpm, lora", "inflora", "copr", "anchors that follow"}
"""Cases of each kind of hook; the others run with -m slow. `test_every_method.py` resumes every method."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES],
)
def test_a_round_that_was_killed_ends_where_an_undisturbed_one_does(
    case: str, tmp_path: Path
) -> None:
    """The process is killed between the second round's two steps, after a checkpoint."""
    method, policy = CASES[case]
    methods = [method] if method["name"] == "kl_anchors" else ["kl_anchors", method]
    changes = {"policy": policy, **ROUNDS.get(case, {})}
    config = campaign_under(tmp_path / "straight", methods, **changes)
    copies = Copying(config.folder, tmp_path, ("second", 0))
    straight = run(config, copies)
    ran = run(campaign_under(copies.copy_after("second", 0), methods, **changes))
    assert any("goes on from step 1" in note for note in ran.watcher.notes)
    assert [r.state for r in ran.evidence.ledger.rounds()] == ["accepted", "accepted"]
    assert MOVES.get(case, {}).items() <= straight.metrics(1, "second")[-1].items()
    for name, candidate in straight.candidates.items():
        ours, theirs = weights(ran, ran.candidates[name]), weights(straight, candidate)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    left = [sorted(r.config.folder.glob("rounds/**/artifacts/*")) for r in (straight, ran)]
    assert [p.name for p in left[0]] == [p.name for p in left[1]]
    for one, other in zip(*left, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert ran.evidence.files.hash_of(other) is not None
