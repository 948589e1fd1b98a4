"""Rollouts to reach a level, alone and in the sequence, and the other summary numbers, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.store import ReferencesConfig
from align.gate.evidence import Evidence
from align.gate.forgetting import MatrixRow, ScoreMatrix
from align.report.html.page import render
from align.report.learning_cost import Curve, Learning, learning_curve, learning_of
from align.report.status import plain, status_of
from align.report.summary_numbers import SUMMARY, legend, summary_numbers, summary_of
from tests.unit.align.report.test_on_fewer import text_of
from tests.unit.decided import decided, raw


def steps(*rewards: float, new: int = 10, past: int = 2) -> list[dict[str, float]]:
    return [
        {"rollouts/new": float(new), "rollouts/past": float(past), "reward/mean": reward}
        for reward in rewards
    ]


def test_a_point_is_the_mean_of_the_last_steps_over_all_completions() -> None:
    """Replayed completions count; without a reward a step only adds its completions."""
    rows = [*steps(0.0, 0.6), {"rollouts/new": 5.0}, *steps(0.9)]
    assert learning_curve(rows, window=2) == [(24.0, 0.3), (41.0, 0.75)]
    assert learning_curve(rows, window=4) == []
    assert learning_curve([{"reward/mean": 0.5}] * 2, window=2) == []


SLOW: Curve = [(100.0, 0.2), (200.0, 0.5), (300.0, 0.7), (400.0, 0.75)]
QUICK: Curve = [(100.0, 0.5), (200.0, 0.9), (300.0, 1.0)]


@pytest.mark.parametrize(
    ("learning", "share", "expected"),
    [
        # 80% of .75 is .6, reached at 300; 80% of 1 is .8, reached at 200.
        (Learning(curves={"a": SLOW, "b": QUICK}), 0.8, 250.0),
        (Learning(curves={"a": SLOW}), 0.9, 300.0),
        # Against the best of the round alone, 1, 90% is out of reach: all 400 count.
        (Learning(curves={"a": SLOW}, alone_curves={"a": QUICK}), 0.9, 400.0),
        (Learning(curves={"a": SLOW}, alone_curves={"a": QUICK}), 0.7, 300.0),
        # A share of a loss says nothing, and neither does a round of another name.
        (Learning(curves={"a": [(100.0, -0.5), (200.0, -0.1)]}), 0.8, None),
        (Learning(curves={"c": QUICK}), 0.8, None),
    ],
)
def test_rollouts_to_a_share_of_the_best(
    learning: Learning, share: float, expected: float | None
) -> None:
    assert learning.rollouts(["a", "b"], share) == expected


def test_a_round_that_earlier_ones_slow_down_has_a_ratio_above_one() -> None:
    """Half of 1 is reached at 200 in the sequence, and at 100 alone; 80% never in the sequence."""
    learning = Learning(curves={"a": SLOW, "b": QUICK}, alone_curves={"a": QUICK, "b": QUICK})
    assert learning.efficiency(["a"], 0.5) == pytest.approx(2.0)
    assert learning.efficiency(["a", "b"], 0.5) == pytest.approx(1.5)
    assert learning.efficiency(["a"], 0.8) is None
    assert Learning(curves={"a": SLOW}).efficiency(["a"], 0.5) is None


MATRIX = ScoreMatrix(
    suites=("both", "rev", "sort"),
    rows=(
        MatrixRow(name="base", accepted=True, scores=(0.1, 0.2, 0.3)),
        MatrixRow(name="rev", accepted=True, scores=(0.1, 0.8, 0.2)),
        MatrixRow(name="sort", accepted=True, scores=(0.4, 0.5, 0.6)),
    ),
)


def test_numbers_that_references_and_composed_suites_give() -> None:
    learning = Learning(
        curves={"rev": QUICK, "sort": SLOW},
        alone_curves={"rev": SLOW, "sort": QUICK},
        alone={"rev": 0.9, "sort": 0.7},
        joint={"rev": 1.0, "sort": 0.8, "both": 0.5},
        parts={"both": ("rev", "sort")},
    )
    numbers = summary_numbers(MATRIX, learning)
    assert list(numbers) == list(SUMMARY)
    assert numbers["FWT_gain"] == pytest.approx(0.6 - 0.7)  # The first round had nothing before it.
    assert numbers["IM"] == pytest.approx(((1.0 - 0.8) + (0.8 - 0.6)) / 2)
    assert numbers["CG"] == pytest.approx(0.4 - 0.5 * 0.6)
    assert numbers["C_joint"] == pytest.approx(0.4 / 0.5)
    assert numbers["N80"] == pytest.approx((200.0 + 400.0) / 2)  # .6 of .75 and .8 of 1.
    assert numbers["N80_ratio"] is None  # Sort does not reach .8; rev is the first round.


def test_numbers_that_nothing_is_known_for_are_none() -> None:
    numbers = summary_numbers(MATRIX, Learning())
    known = {name for name, value in numbers.items() if value is not None}
    assert known == {"AP", "AIA", "LA", "BWT", "FM", "FWT"}
    unmeasured = summary_numbers(MATRIX.select([1, 2]), Learning(parts={"both": ("rev", "sort")}))
    assert unmeasured["CG"] is None


def campaign_with_curve(folder: Path, *rewards: float) -> Evidence:
    """The decided campaign, whose accepted round has this curve of 12 completions a step."""
    folder.mkdir(exist_ok=True)
    evidence = decided(folder)
    path = next(evidence.folder.glob("rounds/00-first/attempt-1/metrics.jsonl"))
    lines = [json.dumps({"step": i, **step}) for i, step in enumerate(steps(*rewards))]
    path.write_text("\n".join(lines))
    return evidence


def with_references(evidence: Evidence, **references: Any) -> Evidence:
    config = evidence.config.model_copy(update={"references": ReferencesConfig(**references)})
    return Evidence(store=evidence.store, config=config)


def test_every_report_shows_the_numbers_and_what_they_mean(tmp_path: Path) -> None:
    """Steps of 12: the mean of five is .2 at 60, .8 at 96 and 108. Alone it is 1 at 108."""
    sequence = campaign_with_curve(tmp_path / "own", 0, 0, 0, 0.5, 0.5, 1, 1, 1, 0.5)
    alone = campaign_with_curve(tmp_path / "alone", 0, 0, 0, 0, 1, 1, 1, 1, 1)
    evidence = with_references(
        sequence, alone=(str(alone.folder),), joint=str(tmp_path / "not-yet")
    )
    numbers = summary_of(evidence)
    assert numbers["N80"] == 96.0
    assert numbers["N90"] == 108.0  # Never .9: all completions of the nine steps.
    assert numbers["N80_ratio"] is None  # The only accepted round is the first.
    status = plain(status_of(evidence))
    assert status["summary"] == numbers
    text, page = text_of(evidence, tmp_path), render(evidence)
    shown = {name for name, value in numbers.items() if value is not None}
    line = next(line for line in text.splitlines() if line.startswith("AP "))
    assert "N80 96   N90 108" in line
    assert legend(n for n in SUMMARY if n in shown) in " ".join(text.split())
    assert f"no campaign to be read in {tmp_path / 'not-yet'}" in " ".join(text.split())
    assert all(f"<abbr>{name}</abbr> {escape(SUMMARY[name].meaning)}" in page for name in shown)
    assert learning_of(evidence).alone == {"first": 0.5}


def test_references_and_composed_suites_leave_older_stores_as_they_are(tmp_path: Path) -> None:
    campaign = CampaignConfig.model_validate({**raw(tmp_path), "references": {"joint": "x"}})
    assert campaign.hash() == CampaignConfig.model_validate(raw(tmp_path)).hash()
    assert "composes" not in campaign.content()["suites"][0]


@pytest.mark.parametrize("references", [{"joint": "s3://bucket/a"}, {"alone": ["s3://bucket/a"]}])
def test_references_are_folders(references: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="s3://bucket/a is an address"):
        CampaignConfig.model_validate({**raw(tmp_path), "references": references})


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["first", "secnd"], r"suites.0.composes: 'secnd' is no round; .*second"),
        (["first", "first"], "suites.0.composes: 'first' stands there twice"),
    ],
)
def test_a_suite_composes_two_rounds_of_the_campaign(
    pair: list[str], message: str, tmp_path: Path
) -> None:
    values = raw(tmp_path)
    values["suites"][0]["composes"] = pair
    with pytest.raises(ValidationError, match=message):
        CampaignConfig.model_validate(values)
    values["suites"][0]["composes"] = ["first", "second"]
    assert CampaignConfig.model_validate(values).content()["suites"][0]["composes"]
