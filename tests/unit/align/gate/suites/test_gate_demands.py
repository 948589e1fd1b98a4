"""What a campaign file may ask of a suite, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.data.base_model import SCHEMES
from align.gate.suites.demands import USUAL_RATE_MARGIN
from align.gate.suites.suites import Suite, build_suites
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign


def built(folder: Path, own: dict[str, Any] | None = None, **general: Any) -> dict[str, Suite]:
    raw = raw_campaign(folder)
    raw["suites"][0].update(general)
    raw["defaults"]["suite"].update(own or {})
    config = CampaignConfig.model_validate(raw)
    suites = build_suites(config, SCHEMES, None)  # type: ignore[arg-type]  # No texts to encode.
    return {suite.name: suite for suite in suites}


def test_what_is_asked_by_default(tmp_path: Path) -> None:
    """exact_match is a share, so the rates have the suite's margin; the best so far has the budget."""
    suites = built(tmp_path)
    general, first = suites["general"].demands, suites["first"].demands
    assert (general.family, general.zero_tolerance) == ("general", ())
    assert (general.best_margin, general.truncation_margin, general.failure_margin) == (
        0.1, 0.05, 0.05,
    )  # fmt: skip
    assert (first.best_margin, first.truncation_margin) == (0.1, 0.05)
    assert suites["general"].value_range == (0.0, 1.0)
    assert suites["general"].rule.demands == general


def test_what_is_asked_as_it_is_stated(tmp_path: Path) -> None:
    stated = {
        "family": "safety", "best_margin": 0.04, "truncation_margin": 0.2, "failure_margin": 0.1,
        "margin": 0.02, "range": [-1, 3], "temperature": 0.5, "samples": 4, "cluster": "answer",
    }  # fmt: skip
    suite = built(tmp_path, **stated)["general"]
    asked = suite.demands
    assert (asked.family, asked.best_margin) == ("safety", 0.04)
    assert (asked.truncation_margin, asked.failure_margin) == (0.2, 0.1)
    assert (suite.value_range, suite.samples, suite.cluster) == ((-1.0, 3.0), 4, "answer")


def test_a_rate_margin_is_a_share_of_the_range(tmp_path: Path) -> None:
    wide = {"metric": {"name": "length", "options": {"target": 3}}, "margin": 0.5, "budget": 0.6}
    known = built(tmp_path, range=[0, 10], **wide)["general"].demands
    assert known.truncation_margin == pytest.approx(0.05)
    unknown = built(tmp_path, **wide)["general"].demands
    assert unknown.truncation_margin == USUAL_RATE_MARGIN


def test_the_best_margin_is_never_below_the_margin(tmp_path: Path) -> None:
    assert built(tmp_path, best_margin=0.001)["general"].demands.best_margin == 0.05


def test_samples_and_clusters_make_another_suite(tmp_path: Path) -> None:
    plain = built(tmp_path, temperature=1.0)["general"].hash
    assert built(tmp_path, temperature=1.0, samples=2)["general"].hash != plain
    assert built(tmp_path, temperature=1.0, cluster="answer")["general"].hash != plain
    assert built(tmp_path, temperature=1.0, family="safety")["general"].hash == plain


def test_items_on_a_list_are_found(tmp_path: Path) -> None:
    ids = built(tmp_path)["general"].item_ids
    asked = built(tmp_path, zero_tolerance=[ids[3]])["general"].demands
    assert asked.zero_tolerance == (ids[3],)
    assert built(tmp_path, zero_tolerance="all")["general"].demands.zero_tolerance == "all"


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"margin": 1.0, "budget": 2.0}, "suites.0.margin", "between 0 and 1"),
        ({"margin": 0.5, "budget": 1.5}, "suites.0.budget", "between 0 and 1"),
        (
            {"margin": 0.04, "budget": 0.03},
            "suites.0.budget",
            "less than the margin of one round, 0.04",
        ),
        ({"margin": 4.0, "budget": 5.0, "range": [0, 3]}, "suites.0.margin", "within 3"),
        ({"zero_tolerance": ["max/none"]}, "suites.0.zero_tolerance", "no item 'max/none'"),
        ({"cluster": "answre"}, "suites.0.cluster", "did you mean 'answer'?"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    tmp_path: Path, changes: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        built(tmp_path, **changes)
    assert caught.value.where == where
    assert words in str(caught.value)


def test_a_round_suite_is_held_to_the_same(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"between 0 and 1") as caught:
        built(tmp_path, own={"margin": 1.5})
    assert caught.value.where == "rounds.0.suite.margin"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 3}, "all completions of an item would be the same"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"truncation_margin": 1.0}, "less than 1"),
        ({"failure_margin": 0.0}, "greater than 0"),
        ({"range": [1, 1]}, "give a smaller and a larger number"),
        ({"range": [0, float("inf")]}, "finite number"),
        ({"family": "saftey"}, "'general', 'instruction' or 'safety'"),
        ({"zero_tolerance": "some"}, "zero_tolerance"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    raw = raw_campaign(tmp_path)
    raw["suites"][0].update(changes)
    with pytest.raises(ValidationError, match=words):
        CampaignConfig.model_validate(raw)
