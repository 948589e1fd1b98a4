"""The setting ``hacking`` of a campaign file: six keys, and the spelling of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.file import CampaignFile, load_campaign
from align.config.watch import HackingConfig, HackingThresholds
from align.report.settings import resolved_lines
from align.store.changes.earlier_versions import as_read
from rollouts.errors import UserError
from tests.unit.campaigns import raw_campaign

STORED = {
    "gate": "none", "window": 8, "proxy_rise": 4.0, "gold_rise": 0.5, "gold_share": 0.15,
    "gold_fall": 4.0, "kl_slope": 0.1, "kl_growth": 1.25, "length_factor": 1.5,
    "repetition_rise": 0.15, "distinct_left": 0.7, "same_answer_share": 0.3, "entropy_left": 0.5,
    "part_share": 0.9, "part_growth": 0.2, "canaries": "auto", "canary_prompts": 8,
    "canary_share": 0.5, "canaries_allowed": [],
}  # fmt: skip
"""Content of the setting in every store that earlier versions wrote."""
EARLIER: dict[str, Any] = {
    name: 0.6 if name == "part_share" else 1.5 if name in ("kl_growth", "length_factor") else 0.3
    for name in HackingThresholds.model_fields
}
"""A value for every key that has moved, none of them its default but one."""


def made(hacking: dict[str, Any], **round_hacking: Any) -> CampaignConfig:
    raw = raw_campaign(Path("nowhere"))
    raw["defaults"]["hacking"] = hacking
    raw["rounds"][0]["hacking"] = round_hacking
    return CampaignConfig.model_validate(raw)


def read(folder: Path, hacking: dict[str, Any], *overrides: str, **on_round: Any) -> CampaignFile:
    raw = raw_campaign(folder)
    raw["defaults"]["hacking"] = hacking
    raw["rounds"][0]["hacking"] = on_round
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_campaign(path, overrides)


def test_a_campaign_file_has_six_keys() -> None:
    assert len(HackingConfig.model_fields) == 6


def test_contents_and_hashes_are_those_that_stores_hold() -> None:
    config = made({})
    content = config.content()
    assert content["defaults"]["hacking"] == content["rounds"][0]["hacking"] == STORED
    assert as_read(content) == content
    changed = made({"thresholds": EARLIER}).content()
    assert as_read(changed) == changed
    assert changed["rounds"][0]["hacking"] == STORED | EARLIER


@pytest.mark.parametrize("key", EARLIER)
def test_both_spellings_are_one_campaign(key: str) -> None:
    earlier, now = made({key: EARLIER[key]}), made({"thresholds": {key: EARLIER[key]}})
    assert earlier.rounds == now.rounds
    assert earlier.hash() == now.hash()
    assert earlier.training_hash("first") == now.training_hash("first")
    assert getattr(now.rounds[0].hacking.thresholds, key) == EARLIER[key]


@pytest.mark.parametrize("key", EARLIER)
def test_a_file_with_the_earlier_spelling_gets_one_note_and_is_shown_anew(
    tmp_path: Path, key: str
) -> None:
    file = read(tmp_path, {key: EARLIER[key]}, **{key: EARLIER[key]})
    assert [note for note in file.notes if "hacking" in note] == [
        f"hacking.{key} is now hacking.thresholds.{key}; the next version reads no other"
    ]
    assert file.raw["defaults"]["hacking"] == {"thresholds": {key: EARLIER[key]}}
    lines = dict(line.split(":", 1) for line in resolved_lines(file))
    assert lines[f"rounds.0.hacking.thresholds.{key}"].endswith("# file")
    assert lines[f"rounds.1.hacking.thresholds.{key}"].endswith("# defaults")


def test_a_round_says_more_than_the_defaults_in_either_spelling(tmp_path: Path) -> None:
    file = read(
        tmp_path, {"proxy_rise": 2.0, "thresholds": {"gold_rise": 1.0}},
        thresholds={"proxy_rise": 3.0}, gold_rise=2.0,
    )  # fmt: skip
    thresholds = file.config.rounds[0].hacking.thresholds
    assert (thresholds.proxy_rise, thresholds.gold_rise) == (3.0, 2.0)
    thresholds = file.config.rounds[1].hacking.thresholds
    assert (thresholds.proxy_rise, thresholds.gold_rise) == (2.0, 1.0)


def test_an_override_in_the_earlier_spelling_is_shown_as_one(tmp_path: Path) -> None:
    file = read(tmp_path, {"proxy_rise": 2.0}, "defaults.hacking.proxy_rise=3.0")
    assert file.config.rounds[1].hacking.thresholds.proxy_rise == 3.0
    lines = dict(line.split(":", 1) for line in resolved_lines(file))
    assert lines["defaults.hacking.thresholds.proxy_rise"].endswith("# --set")


def test_a_threshold_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"both are set; remove proxy_rise"):
        read(tmp_path, {"proxy_rise": 2.0, "thresholds": {"proxy_rise": 3.0}})


@pytest.mark.parametrize(
    "hacking", [3, [], {"thresholds": 3, "proxy_rise": 2.0}, {"proxy_rise": 0}]
)
def test_what_is_no_setting_is_one_message(tmp_path: Path, hacking: Any) -> None:
    with pytest.raises(UserError, match="hacking"):
        read(tmp_path, hacking)
    with pytest.raises(ValidationError):
        made(hacking)
