"""Pairs by their implicit reward: values by hand, whose reference it is, and what old stores keep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.config.campaign import CampaignConfig
from align.errors import StoreError
from align.gate.evidence import stored_evidence
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.suites.implicit import Reference, load_logprobs, save_logprobs, shares
from align.gate.suites.kinds.pairs import LIKELIHOOD, LONGER, PairSuite
from align.gate.suites.known import compared, known_snapshots
from align.gate.suites.suites import _with_settings
from align.round.inputs import load_inputs
from rollouts.engines.protocol import ScoreRequest
from rollouts.types import SnapshotId
from tests.unit.align.round.test_algorithm_rounds import FILES
from tests.unit.campaigns import Starter, Watcher, campaign, rounds


def suite(**changes: Any) -> PairSuite:
    """Two pairs: (2, 1) tokens and (1, 1) tokens."""
    options: dict[str, Any] = {
        "sequences": (((1,), (5, 6)), ((1,), (7,)), ((2,), (5,)), ((2,), (7,))),
        "sequence_ids": ("a", "b"),
        "implicit": True,
    }
    return PairSuite(
        name="r", role="gate", margin=0.1, budget=0.2, target_of="r",
        **(options | changes),
    )  # fmt: skip


def reference(folder: Path, **sums: list[float]) -> Reference:
    for name, values in sums.items():
        save_logprobs(folder / f"{name}.json", values)
    share = 1.0 / len(sums)
    return Reference(
        weights=tuple((name, share) for name in sums),
        files=tuple(folder / f"{name}.json" for name in sums),
    )


class Scores:
    """An engine's `score` with logprobs that stand for a snapshot's."""

    def __init__(self, *rows: tuple[float, ...]) -> None:
        self.rows = rows

    def score(self, requests: list[ScoreRequest]) -> list[tuple[float, ...]]:
        return list(self.rows)


# values


def test_a_pair_counts_by_its_log_ratios_not_by_its_likelihood(tmp_path: Path) -> None:
    """The better answer of a is less likely, -4 against -3, and rose by 2 where the worse one fell by 1."""
    known = suite(reference=reference(tmp_path, ref=[-6.0, -2.0, -1.0, -3.0]))
    assert known.preferred([-4.0, -3.0, -2.0, -3.5], "candidate") == [1.0, 0.0]


def test_the_reference_itself_prefers_nothing_whatever_rounding_says(tmp_path: Path) -> None:
    known = suite(reference=reference(tmp_path, ref=[-6.0, -2.0, -1.0, -3.0]))
    assert known.preferred([-6.0000001, -2.0, -1.0, -3.0], "ref") == [0.5, 0.5]


def test_several_anchors_are_weighed(tmp_path: Path) -> None:
    """The references' mean is (-4, -2); the candidate's log ratios are 1 and 1.5."""
    known = suite(
        sequences=suite().sequences[:2], sequence_ids=("a",),
        reference=reference(tmp_path, one=[-6.0, -3.0], two=[-2.0, -1.0]),
    )  # fmt: skip
    assert known.preferred([-3.0, -0.5], "candidate") == [0.0]
    assert known.preferred([-3.0, -0.5], "one") == [0.0], "one of two is not the reference"


def test_other_rules_stand_beside(tmp_path: Path) -> None:
    known = suite(reference=reference(tmp_path, ref=[-6.0, -2.0, -1.0, -3.0]))
    engine: Any = Scores((-1.0, -3.0), (-3.0,), (-2.0,), (-3.5,))
    results = evaluate(engine, [known], None, "candidate", seed=0)["r"]  # type: ignore[arg-type]
    assert results.values == (1.0, 0.0)
    # Per token -2 against -3, and -2 against -3.5; the longer one wins the first, and ties the second.
    assert results.beside == {LONGER: 0.75, LIKELIHOOD: 1.0}
    assert PairSuite.side_sentence(results) == (
        "right about 50.0% of 2 pairs; the longer answer is right about 75.0%, the higher likelihood per "
        "token is right about 100.0%"
    )
    results.save(tmp_path / "r.parquet")
    assert ItemResults.load(tmp_path / "r.parquet").beside == results.beside
    plain = evaluate(engine, [suite(implicit=False)], None, "candidate", seed=0)["r"]  # type: ignore[arg-type]
    assert plain.values == (1.0, 1.0) and plain.beside == {LONGER: 0.75}


def test_a_damaged_reference_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, ")
    with pytest.raises(StoreError, match="cannot be read"):
        load_logprobs(tmp_path / "x.json")


# the hash


def test_the_hash_covers_the_reference_and_old_ones_stay() -> None:
    plain, implicit = suite(implicit=False), suite()
    one, other = (
        replace(implicit, reference=Reference(weights=((name, 1.0),), files=(Path("x"),)))
        for name in ("a", "b")
    )
    assert len({plain.hash, implicit.hash, one.hash, other.hash}) == 4
    moved = replace(one, reference=Reference(weights=(("a", 1.0),), files=(Path("elsewhere"),)))
    assert moved.hash == one.hash


@pytest.mark.parametrize("older", [{}, {"encoding": "e"}, {"encoding": "e", "engine": {"d": "f"}}])
def test_a_store_that_measured_pairs_by_likelihood_goes_on_so(older: dict[str, Any]) -> None:
    stored = {replace(suite(implicit=False), **older).hash}
    (kept,) = _with_settings([suite()], "e", {"d": "f"}, stored)
    assert not kept.implicit and kept.hash in stored
    (fresh,) = _with_settings([suite()], "e", {"d": "f"}, ())
    assert fresh.implicit


# whole rounds


def pairs_file(folder: Path) -> Path:
    from align.data.demo.world import demo_prompts

    path = folder / "pairs.jsonl"
    rows = []
    for prompt in demo_prompts("demo://rev?n=120"):
        right = str(prompt.columns["answer"])
        rows += FILES["pairs.jsonl"](prompt.text, right, " ".join(reversed(right.split())))
    rows = [row for row in rows if row["chosen"] != row["rejected"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preference(folder: Path, **algorithm: Any) -> dict[str, Any]:
    source = {"source": str(pairs_file(folder)), "heldout": 0.3}
    return {
        "prompts": None, "rewards": [], "data": source, "steps": 2,
        "algorithm": {"name": "dpo", "pairs": "file", **algorithm},
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignConfig, Watcher, Starter]:
    """Two rounds: one that samples, and DPO from a file after it."""
    folder = tmp_path_factory.mktemp("implicit")
    config = campaign(folder, rounds=rounds({"prompts": "demo://sort?n=60"}, preference(folder)))
    watcher, starter = Watcher(), Starter()
    run_campaign(config, start_engine=starter, observer=watcher)
    return config, watcher, starter


def means(config: CampaignConfig) -> dict[SnapshotId, float]:
    evidence = stored_evidence(config)
    return {e.snapshot: e.mean for e in evidence.ledger.evaluations() if e.suite == "round1"}


def test_a_round_is_judged_against_its_own_parent(
    ran: tuple[CampaignConfig, Watcher, Starter],
) -> None:
    config, watcher, _ = ran
    evidence = stored_evidence(config)
    first, second = evidence.ledger.rounds()
    assert second.parent == first.candidate and second.parent is not None
    found = means(config)
    assert found[second.parent] == 0.5, "the reference prefers nothing"
    assert set(found) == {evidence.base, first.candidate, second.candidate}
    lines = [note for note in watcher.notes if "the longer answer is right about" in note]
    assert len(lines) == 3 and all("the higher likelihood per token" in line for line in lines)
    again, recorded = evidence.recompute("round1")
    assert again.to_json() == recorded.to_json()


def test_the_values_are_those_of_the_engine(
    ran: tuple[CampaignConfig, Watcher, Starter],
) -> None:
    """The engine still holds the candidate; the parent's log-likelihoods were stored."""
    config, _, starter = ran
    evidence = stored_evidence(config)
    inputs = load_inputs(config)
    ready = compared(inputs.suites, known_snapshots(evidence, inputs.suites))
    (known,) = (s for s in ready if s.target_of == "round1")
    assert known.reference is not None
    requests = [ScoreRequest(prompt_ids=p, completion_ids=c) for p, c in known.sequences]
    ratios = [
        math.fsum(own) - before
        for own, before in zip(
            starter.engines[-1].score(requests), known.reference.logprobs(), strict=True
        )
    ]
    right = [a > b for a, b in zip(ratios[::2], ratios[1::2], strict=True)]
    candidate = evidence.ledger.rounds()[1].candidate
    assert means(config)[candidate or ""] == pytest.approx(sum(right) / len(right))
    inputs.close()


def test_a_lost_reference_is_scored_again(
    ran: tuple[CampaignConfig, Watcher, Starter], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(ran[0].folder, tmp_path / "store")
    specs = [spec.model_dump(mode="json") for spec in ran[0].rounds]
    third = {**specs[0], "name": "round2", "prompts": "demo://inc?n=60", "steps": 1}
    config = campaign(tmp_path, rounds=[*specs, third])
    (file,) = (tmp_path / "store/evaluations/references").glob("*.json")
    before = file.read_bytes()
    file.write_text(file.read_text().replace("-", ""))
    watcher = Watcher()
    run_campaign(config, start_engine=Starter(), observer=watcher)
    assert load_logprobs(file) == pytest.approx(json.loads(before))
    assert any("was changed" in note and file.name in note for note in watcher.notes)
    assert len(means(config)) == 4


def test_a_round_may_ask_for_likelihood(tmp_path: Path) -> None:
    spec = {**preference(tmp_path), "suite": {"items": 30, "margin": 0.1, "pairs": "likelihood"}}
    inputs = load_inputs(campaign(tmp_path, rounds=rounds(spec)))
    (pairs,) = (s for s in inputs.suites if s.target_of == "round0")
    assert isinstance(pairs, PairSuite) and not pairs.implicit
    inputs.close()


def test_anchors_of_new_prompts_are_the_reference(tmp_path: Path) -> None:
    anchors = {"new": [{"to": "base", "beta": 1.0}, {"to": "parent", "beta": 3.0}]}
    config = campaign(tmp_path, rounds=rounds({**preference(tmp_path), "anchors": anchors}))
    assert shares(config.rounds[0]) == {"base": 0.25, "parent": 0.75}
    plain = campaign(tmp_path, rounds=rounds(preference(tmp_path)))
    assert shares(plain.rounds[0]) == {"parent": 1.0}
