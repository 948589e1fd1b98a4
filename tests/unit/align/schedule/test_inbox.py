"""Rows of the inbox: stored once, judged as a round reads them, spent with the verdict of one round."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from align.config.data import ExamplesConfig
from align.data.examples.forms import Unusable
from align.errors import StaleAttempt
from align.schedule.inbox.inbox import REQUESTS_KEPT_S, Inbox, Waiting
from align.schedule.inbox.numbering import Submission
from align.schedule.inbox.rows import StreamForm, form_of
from align.store.ledger.ledger import Ledger
from align.store.ledger.reservations import Reservation
from rollouts.errors import UserError
from tests.unit.inboxes import TASTE, feedback, opened, pair
from tests.unit.ledgers import BASE, FIRST, REPORT, raw, started, url

RATINGS = StreamForm(
    stream="taste", config=ExamplesConfig(source="inbox://taste"), kinds=("rating", "pair")
)


def numbers(inbox: Inbox, reservation: Reservation | None) -> list[int]:
    assert reservation is not None
    return [int(row.location.rpartition(" ")[2]) for row in inbox.read(reservation)]


def verdict(ledger: Ledger, index: int, name: str, given: Any) -> None:
    """Take a round from its beginning to a verdict."""
    attempt = ledger.begin_round(index, name, BASE.id)
    ledger.enter_gating(index, attempt, FIRST.id)
    ledger.commit_round(index, attempt, given, FIRST.id, REPORT)


# Rows


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"chosen": "a b", "rejected": "a c"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "c"}],
        },
    ],
    ids=["plain", "implicit prompt", "conversation"],
)
def test_pairs_in_the_forms_that_files_have(values: dict[str, Any]) -> None:
    assert TASTE.read(values, "test").kind == "pair"


def test_a_rating_where_rounds_rate_answers() -> None:
    rating = {"prompt": "a", "completion": "b", "label": True}
    assert RATINGS.read(rating, "test").kind == "rating"
    assert RATINGS.read(pair(1), "test").kind == "pair"
    with pytest.raises(Unusable, match="a rating, and rounds of this stream learn from pairs"):
        TASTE.read(rating, "test")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"x": 1}, "neither a pair nor a rating"),
        (pair(1, rejected="yes"), "equal sides"),
        (pair(1, chosen=" "), "'chosen' is empty"),
        (
            {"chosen": "b", "rejected": "c"},
            "no prompt: no column 'prompt' among 'chosen', 'rejected', and 'chosen' and 'rejected' do not "
            "begin alike",
        ),
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected' among 'prompt', 'chosen'"),
        (pair(1, when=datetime(2026, 1, 1)), "column 'when' cannot be kept as JSON"),
        (pair(1, score=float("nan")), "column 'score' cannot be kept as JSON"),
        (pair(1, chosen="\ud800"), "not valid Unicode"),
        (pair(1, user=["u"]), "'user' is not text"),
        (pair(1, user="a\nb"), "'user' is not 1 to 256 printable characters"),
        (pair(1, chosen="x" * 500), "longer than 400 characters"),
    ],
)
def test_why_a_row_cannot_be_used(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        TASTE.read(values, "test", max_chars=400)
    assert str(refused.value) == reason


def test_user_and_key_are_no_columns() -> None:
    row = TASTE.read(pair(1, user="u", key="k"), "test")
    assert (row.user, row.key) == ("u", "k")
    assert row.payload == '{"chosen": "yes", "prompt": "Question 1?", "rejected": "no"}'
    named = TASTE.judge({**pair(1), "who": 7}, "test", user_column="who")
    assert (named.user, named.payload) == ("7", row.payload)


def test_a_stream_that_no_round_reads_is_named() -> None:
    forms = {"taste": TASTE}
    assert form_of(forms, None) is TASTE
    with pytest.raises(UserError, match=r"(?s)no round reads inbox://tatse.*did you mean 'taste'"):
        form_of(forms, "tatse")
    with pytest.raises(UserError, match="no round reads"):
        form_of({}, None)
    with pytest.raises(UserError, match="which stream is meant is not said"):
        form_of({"a": TASTE, "b": TASTE}, None)


# Storing


def test_a_row_is_stored_once(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    first = inbox.add("taste", [feedback(1), feedback(2), feedback(1)])
    assert first.outcomes == ("stored", "stored", "duplicate")
    assert first.numbers == (1, 2, 1)
    again = inbox.add("taste", [feedback(2), feedback(3)])
    assert (again.outcomes, again.numbers) == (("duplicate", "stored"), (2, 3))
    assert inbox.add("other", [feedback(1)]).numbers == (1,)
    assert [row.payload["prompt"] for row in inbox.rows("taste")] == [
        "Question 1?", "Question 2?", "Question 3?",
    ]  # fmt: skip


def test_the_same_pair_of_two_people_is_two_votes(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    rows = [feedback(1, user="a"), feedback(1, user="b"), feedback(1, user="a"), feedback(1)]
    assert inbox.add("taste", rows).numbers == (1, 2, 1, 3)


def test_a_senders_key_is_one_row(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    rows = [feedback(1, key="k"), feedback(2, key="k"), feedback(1, key="k")]
    receipt = inbox.add("taste", rows)
    assert receipt.outcomes == ("stored", "conflict", "duplicate")
    assert receipt.numbers == (1, None, 1)
    assert inbox.add("taste", [feedback(3, key="k")]).outcomes == ("conflict",)


def test_a_repeated_request_gets_its_answer_again(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    first = inbox.add("taste", [feedback(1)], key="r", digest="d")
    again = inbox.add("taste", [feedback(1)], key="r", digest="d")
    assert (again.outcomes, again.numbers, again.repeated) == (first.outcomes, (1,), True)
    other = inbox.add("taste", [feedback(2)], key="r", digest="e")
    assert other.refused and not other.outcomes
    assert inbox.waiting("taste").count == 1


def test_requests_of_one_commit_are_told_apart(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    one = Submission(stream="taste", rows=(feedback(1),), key="r", digest="d")
    other = Submission(stream="taste", rows=(feedback(2),), key="r", digest="e")
    plain = Submission(stream="taste", rows=(feedback(1), feedback(3)))
    receipts = inbox.add_all([one, one, other, plain])
    assert [(r.outcomes, r.repeated, r.refused) for r in receipts] == [
        (("stored",), False, False),
        (("stored",), True, False),
        ((), False, True),
        (("duplicate", "stored"), False, False),
    ]


def test_old_requests_are_forgotten(tmp_path: Path) -> None:
    now = [0.0]
    inbox = Inbox(started(tmp_path).database, clock=lambda: now[0])
    inbox.add("taste", [feedback(1)], key="r", digest="d")
    now[0] = REQUESTS_KEPT_S - 1
    inbox.forget_requests()
    assert inbox.add("taste", [feedback(1)], key="r", digest="d").repeated
    now[0] = REQUESTS_KEPT_S + 1
    inbox.forget_requests()
    assert inbox.add("taste", [feedback(1)], key="r", digest="d").outcomes == ("duplicate",)


def test_more_rows_than_a_query_names(tmp_path: Path) -> None:
    _, inbox = opened(tmp_path)
    rows = [feedback(number, key=f"k{number}") for number in range(1000)]
    assert inbox.add("taste", rows).count("stored") == 1000
    assert inbox.add("taste", rows).count("duplicate") == 1000


def test_what_waits(tmp_path: Path) -> None:
    inbox = Inbox(started(tmp_path).database, clock=lambda: 86400.0)
    assert inbox.waiting("taste") == Waiting(count=0, oldest=None, newest_id=0)
    bad = TASTE.judge({"x": 1}, "rows.jsonl:7")
    inbox.add("taste", [feedback(1), bad, feedback(2)])
    day = datetime(1970, 1, 2, tzinfo=UTC)
    assert inbox.waiting("taste") == Waiting(count=2, oldest=day, newest_id=3)
    assert inbox.quarantine("taste", [1, 2, 9], "spam") == 1
    assert inbox.waiting("taste") == Waiting(count=1, oldest=day, newest_id=3)
    aside = inbox.rows("taste", state="quarantined")
    assert [(row.number, row.reason, row.source) for row in aside] == [
        (1, "spam", "test"),
        (2, "neither a pair nor a rating", "rows.jsonl:7"),
    ]
    assert inbox.add("taste", [feedback(1)]).outcomes == ("duplicate",)
    with pytest.raises(UserError, match="no row 9"):
        inbox.row("taste", 9)


def test_a_store_of_an_older_version_gets_an_inbox(tmp_path: Path) -> None:
    started(tmp_path)
    tables = ("streams", "rows", "requests", "takes", "purges")
    with raw(tmp_path) as connection:
        for table in tables:
            connection.execute(f"DROP TABLE inbox_{table}")
    assert Inbox(Ledger(url(tmp_path)).database).add("taste", [feedback(1)]).numbers == (1,)


# Takes


def test_a_round_takes_what_is_there_when_it_begins(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    assert inbox.reserve("reverse", "taste") is None
    inbox.add("taste", [feedback(1), feedback(2)])
    assert numbers(inbox, inbox.reserve("reverse", "taste")) == [1, 2]
    inbox.add("taste", [feedback(3)])
    assert numbers(inbox, inbox.reserve("reverse", "taste")) == [1, 2, 3]
    ledger.begin_round(0, "reverse", BASE.id)
    inbox.add("taste", [feedback(4)])
    assert numbers(inbox, inbox.reserve("reverse", "taste")) == [1, 2, 3]


def test_a_failed_attempt_spends_nothing_and_the_next_reads_the_same(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1)])
    inbox.reserve("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.commit_round(0, attempt, "failed", None, {})
    inbox.add("taste", [feedback(2)])
    assert inbox.waiting("taste").count == 2
    assert numbers(inbox, inbox.reserve("reverse", "taste")) == [1]
    verdict(ledger, 0, "reverse", "rejected")
    assert inbox.waiting("taste").count == 1


@pytest.mark.parametrize("given", ["accepted", "rejected"])
def test_i12_a_verdict_spends_the_rows(tmp_path: Path, given: str) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1), feedback(2)])
    inbox.reserve("reverse", "taste")
    inbox.add("taste", [feedback(3)])
    verdict(ledger, 0, "reverse", given)
    (reservation,) = inbox.reservations()
    assert (reservation.state, reservation.num_rows, reservation.ended is None) == (
        "used",
        2,
        False,
    )
    assert inbox.waiting("taste").count == 1
    assert numbers(inbox, inbox.reserve("sort", "taste")) == [3]


def test_i14_rejected_rows_return_where_the_round_says_so(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1)])
    inbox.reserve("reverse", "taste", after_rejection="returned")
    verdict(ledger, 0, "reverse", "rejected")
    assert inbox.reservations()[0].state == "returned"
    assert numbers(inbox, inbox.reserve("sort", "taste")) == [1]


def test_what_a_policy_reads_twice(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(number) for number in range(1, 5)])
    inbox.reserve("reverse", "taste")
    verdict(ledger, 0, "reverse", "rejected")
    inbox.add("taste", [feedback(5)])
    assert numbers(inbox, inbox.reserve("sort", "taste", use="all")) == [1, 2, 3, 4, 5]
    assert numbers(inbox, inbox.reserve("sort", "taste", use="last:2")) == [4, 5]
    assert numbers(inbox, inbox.reserve("sort", "taste", use="last:9")) == [1, 2, 3, 4, 5]
    assert numbers(inbox, inbox.reserve("sort", "taste")) == [5]
    inbox.reserve("sort", "taste", use="all")
    verdict(ledger, 1, "sort", "rejected")
    assert inbox.reservations()[-1].state == "used"
    assert inbox.waiting("taste").count == 1
    assert inbox.waiting("taste", above=3).count == 2


def test_a_limit_leaves_the_rest_to_the_next_round(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(number) for number in range(1, 6)])
    inbox.quarantine("taste", [2], "spam")
    assert numbers(inbox, inbox.reserve("reverse", "taste", limit=2)) == [1, 3]
    verdict(ledger, 0, "reverse", "rejected")
    assert numbers(inbox, inbox.reserve("sort", "taste", limit=9)) == [4, 5]


def test_a_crash_before_the_verdict_is_written_spends_nothing(tmp_path: Path) -> None:
    """The watermark is moved and the process dies before the commit: neither is there."""
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1)])
    inbox.reserve("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.enter_gating(0, attempt, FIRST.id)
    seen: list[str] = []

    def crash(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)
        if "UPDATE inbox_takes" in statement:
            raise KeyboardInterrupt

    event.listen(ledger.database.engine, "after_cursor_execute", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    event.remove(ledger.database.engine, "after_cursor_execute", crash)
    assert any("UPDATE inbox_streams" in statement for statement in seen)
    assert ledger.rounds()[0].state == "gating"
    assert (inbox.waiting("taste").count, inbox.reservations()[0].state) == (1, "held")
    ledger.commit_round(0, attempt, "accepted", FIRST.id, REPORT)
    assert (inbox.waiting("taste").count, inbox.reservations()[0].state) == (0, "used")


def test_a_verdict_needs_the_watermark_where_the_round_found_it(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1)])
    inbox.reserve("reverse", "taste")
    with raw(tmp_path) as connection:
        connection.execute("UPDATE inbox_streams SET watermark = 1")
    with pytest.raises(StaleAttempt, match="watermark of inbox://taste is no longer 0"):
        verdict(ledger, 0, "reverse", "accepted")
    assert ledger.rounds()[0].state == "gating"
    assert ledger.alias("production") == BASE.id


def test_a_reservation_of_an_unfinished_round_is_released(tmp_path: Path) -> None:
    ledger, inbox = opened(tmp_path)
    inbox.add("taste", [feedback(1)])
    inbox.reserve("reverse", "taste")
    attempt = ledger.begin_round(0, "reverse", BASE.id)
    ledger.commit_round(0, attempt, "failed", None, {})
    assert numbers(inbox, inbox.reserve("sort", "taste")) == [1]
    verdict(ledger, 1, "sort", "rejected")
    assert inbox.reserve("reverse", "taste") is None


# Configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "inbox://Taste"}, "names no stream"),
        ({"source": "inbox://"}, "names no stream"),
        ({"source": "rows.jsonl", "use": "all"}, "are for streams"),
        ({"source": "rows.jsonl", "after_rejection": "returned"}, "are for streams"),
        ({"source": "inbox://taste", "use": "last:0"}, "pattern"),
        ({"source": "inbox://taste", "use": "all", "limit": 10}, "set use: last:10 for the newest"),
    ],
)
def test_data_that_cannot_be_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExamplesConfig(**fields)
