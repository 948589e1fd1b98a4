"""A stream has one reading round at a time, also if its schedule was renamed or its rows are gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from align.schedule.due import Claimed, History, Schedule, tick
from tests.unit.align.schedule.test_schedule_due import FED, claim
from tests.unit.schedules import NAME, START, arrived, schedule


def test_a_round_whose_schedule_is_gone_is_still_due() -> None:
    history = History(claims=(claim("nightly-1", START),))
    renamed = schedule("renamed", every="0 3 * * *")
    found = tick([renamed], history, {}, START)
    assert [(d.schedule, d.round, d.claimed) for d in found.due] == [(NAME, "nightly-1", True)]
    done = replace(history, verdicts=frozenset({"nightly-1"}))
    assert not tick([renamed], done, {}, START).due


def test_a_stream_has_one_reader_at_a_time() -> None:
    """Schedules were renamed, a file was not checked, or plain rounds stand beside a template."""
    when = {"new_pairs": 10}
    one, two = (schedule(name, stream="taste", when=when) for name in ("one", "two"))
    plain = schedule("plain", stream="taste")
    rows = {"taste": arrived(20)}

    def seen(schedules: list[Any], *claims: Claimed) -> tuple[list[str], list[str]]:
        found = tick(schedules, History(claims=claims), rows, START)
        return [due.round for due in found.due], [waits.why for waits in found.waits]

    waits = "waits for the verdict on {}, which reads inbox://taste too"
    assert seen([one, two]) == (["one-1"], [waits.format("one-1")])
    assert seen([one, plain]) == (["plain"], [waits.format("plain")])
    opened = claim("nightly-1", START, stream="taste")
    assert seen([one], opened) == (["nightly-1"], [waits.format("nightly-1")])
    other = claim("nightly-1", START, stream="other")
    assert seen([one], other)[0] == ["one-1"]
    again = Schedule(name="again", settings=one.settings, stream="taste", rereads=True)
    found = tick([one, again], History(), {"taste/again": arrived(20), **rows}, START)
    assert [due.round for due in found.due] == ["one-1", "again-1"]


def test_a_round_whose_rows_are_gone_waits_for_more() -> None:
    opened = History(claims=(claim("nightly-1", START, stream="taste", newest=20),))
    gone = tick([FED], opened, {"taste": arrived(0, newest=20)}, START)
    assert gone.due == ()
    assert [waits.why for waits in gone.waits] == [
        "nothing is left in inbox://taste for nightly-1, which fell due 2026-11-20 12:00 UTC"
    ]
    (due,) = tick([FED], opened, {"taste": arrived(1, newest=21)}, START).due
    assert (due.round, due.claimed) == ("nightly-1", True)
