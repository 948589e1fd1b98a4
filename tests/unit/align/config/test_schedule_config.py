"""Schedules in campaign files, and the messages for wrong ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.file import load_campaign
from align.config.schedule import ScheduleSettings, parse_duration, spell_duration
from tests.unit.campaigns import campaign, rounds

ROOT = Path(__file__).parents[4]
FED: dict[str, Any] = {
    "name": "nightly",
    "algorithm": {"name": "dpo", "pairs": "file"},
    "prompts": None,
    "rewards": [],
    "data": "inbox://pairs",
}


def wrong(folder: Path, *specs: dict[str, Any]) -> str:
    """Return the message for a campaign of these rounds."""
    with pytest.raises(ValidationError) as raised:
        campaign(folder, rounds=rounds(*specs))
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("6h", 21600), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600)],
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "6", 6, "6 h", "h", "-1h", "1.5h", "6h!", None, "9999999d", "999999w", "3651d"]
)
def test_what_is_no_duration_says_so(text: Any) -> None:
    with pytest.raises(ValueError, match=r"6h or 7d|at most ten years, 3650d"):
        parse_duration(text)


@given(st.integers(0, 3650 * 86400))
def test_durations_are_spelt_as_they_are_read(seconds: int) -> None:
    value = timedelta(seconds=seconds)
    assert parse_duration(spell_duration(value)) == value


def test_a_schedule_survives_its_own_dump() -> None:
    given = {"every": "0 3 * * *", "when": {"new_pairs": 5, "min_interval": "6h", "max_wait": "7d"}}
    one = ScheduleSettings.model_validate(given)
    dumped = one.model_dump(mode="json")
    assert dumped["when"] == {"new_pairs": 5, "min_interval": "6h", "max_wait": "7d"}
    assert ScheduleSettings.model_validate(dumped) == one


@pytest.mark.parametrize(
    ("given", "repeats"),
    [
        ({"every": "@hourly"}, None),
        ({"every": "0 3 * * *"}, True),
        ({"every": "0 3 * * *", "repeat": False}, False),
        ({"when": {"new_pairs": 1}}, True),
        ({"manual": True}, True),
        ({"after": "other"}, False),
        ({"after": "other", "repeat": True}, True),
        ({}, False),
    ],
)
def test_templates(given: dict[str, Any], repeats: bool | None) -> None:
    if repeats is None:
        with pytest.raises(ValidationError, match="1 cron fields, not 5"):
            ScheduleSettings.model_validate(given)
    else:
        assert ScheduleSettings.model_validate(given).repeats is repeats


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"every": "61 * * * *"}, 'bad minute; write five fields, as in "0 3 * * *"'),
        ({"every": "0 3 * *"}, "has 4 cron fields, not 5"),
        ({"every": "0 0 30 2 *"}, "'0 0 30 2 *' is no cron expression: bad day-of-month"),
        ({"every": "0 3 * * *", "timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'?"),
        ({"every": "0 3 * * *", "timezone": "../../etc/passwd"}, "no time zone"),
        ({"timezone": "Europe/Berlin"}, "timezone is the clock of every; set every"),
        ({"repeat": True}, "repeat needs a schedule"),
        ({"manual": True, "every": "0 3 * * *"}, "manual waits for a person"),
        ({"when": {"new_pairs": 5}}, "round 'round0' reads prompts; set data to inbox://NAME"),
        ({"after": "nobody"}, "after: 'nobody' names no round; other rounds: none"),
        ({"after": "round0"}, "rounds wait for each other: round0 after round0"),
        (
            {**FED, "when": {"new_pairs": 5, "min_interval": "8d", "max_wait": "7d"}},
            "min_interval 8d is longer than max_wait 7d",
        ),
        ({**FED, "when": {"new_pairs": 5, "max_wait": "soon"}}, "'soon' is no duration"),
    ],
)
def test_one_round_is_told_what_is_wrong(tmp_path: Path, spec: dict[str, Any], told: str) -> None:
    assert told in wrong(tmp_path, spec)


def test_when_needs_an_inbox_and_not_a_file(tmp_path: Path) -> None:
    told = wrong(tmp_path, {**FED, "data": "pairs.jsonl", "when": {"new_pairs": 5}})
    assert "round 'nightly' reads 'pairs.jsonl'" in told


def test_rounds_that_wait_for_each_other(tmp_path: Path) -> None:
    told = wrong(tmp_path, {"after": "round2"}, {"after": "round0"}, {"after": "round1"})
    assert "round0 after round2 after round1 after round0" in told


def test_names_of_rounds_to_come_are_taken(tmp_path: Path) -> None:
    told = wrong(tmp_path, {"every": "0 3 * * *"}, {"name": "round0-3"})
    assert "whose rounds are called round0-1 and so on, and 'round0-3' is taken" in told


def test_a_stream_feeds_one_template(tmp_path: Path) -> None:
    fed = {**FED, "every": "0 3 * * *"}
    for repeat in (True, False):
        one = {**fed, "repeat": repeat}
        told = wrong(tmp_path, one, {**one, "name": "other"})
        assert "'nightly' and 'other' both use up inbox://pairs" in told
    campaign(
        tmp_path,
        rounds=rounds(
            fed, {**fed, "name": "other", "data": {"source": "inbox://pairs", "use": "all"}}
        ),
    )


def test_a_round_is_held_only_to_what_is_there_when_it_runs(tmp_path: Path) -> None:
    held = {"anchors": {"new": {"to": "round:round0", "beta": 0.1}}}
    assert "names a template" in wrong(tmp_path, {"every": "0 3 * * *"}, held)
    once = {"every": "0 3 * * *", "repeat": False}
    assert "set after: round0" in wrong(tmp_path, once, held)
    campaign(tmp_path, rounds=rounds(once, {**held, "after": "round0"}))


def test_a_round_may_name_every_round_that_it_waits_for(tmp_path: Path) -> None:
    once = {"every": "0 3 * * *", "repeat": False}
    anchors = [{"to": f"round:round{n}", "beta": 0.1} for n in (0, 1)]
    for new in (anchors, anchors[::-1]):
        last = {"after": "round1", "anchors": {"new": new}}
        campaign(tmp_path, rounds=rounds(once, {**once, "after": "round0"}, last))


def test_a_schedule_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    plain = campaign(tmp_path, rounds=rounds({}))
    timed = campaign(tmp_path, rounds=rounds({"every": "0 3 * * *", "timezone": "Asia/Tokyo"}))
    assert timed.content() == plain.content()
    assert timed.hash() == plain.hash()


def test_the_hash_of_the_first_rounds_stays_when_others_follow(tmp_path: Path) -> None:
    short, long = (campaign(tmp_path, rounds=rounds(*[{}] * n)) for n in (2, 3))
    assert short.hash(2) == long.hash(2) == short.hash() != long.hash()
    assert short.hash(1) != short.hash(2)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_round_that_ships_can_be_claimed(file: Path) -> None:
    """A claim of a round keeps the round."""
    from align.config.campaign import RoundConfig
    from align.schedule.claims import stated

    config: CampaignConfig = load_campaign(file).config
    for spec in config.rounds:
        kept = RoundConfig.model_validate(stated(spec, spec.name), context=config.places)
        unscheduled = {name: f.default for name, f in ScheduleSettings.model_fields.items()}
        assert kept == spec.model_copy(update=unscheduled)
