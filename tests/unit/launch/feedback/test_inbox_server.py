"""The server's answers, without a network: who may, what is stored, what is refused and why."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from align.errors import RunError
from align.schedule.inbox.drop import make_drop
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.numbering import Receipt, Submission
from align.schedule.inbox.writer import QueueFull, Writer, WriterClosed
from launch.feedback import sweeper
from launch.feedback.app import make_app
from launch.feedback.body import BodyLimits
from launch.feedback.receive import Crowded, Receiver
from launch.feedback.sweeper import Sweeper
from launch.feedback.token import is_bearer, read_token
from rollouts.errors import UserError
from tests.patience import patient
from tests.unit.inboxes import TASTE, feedback, opened, pair, settled

TOKEN = "a-token-of-the-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = BodyLimits(body_bytes=4000, rows=5, row_chars=300)


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return opened(tmp_path)[1]


@pytest.fixture
def client(inbox: Inbox, tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(inbox, {"taste": TASTE}, TOKEN, folder=tmp_path / "inbox", limits=LIMITS)
    with TestClient(app, headers=HEADERS) as made:
        yield made


def test_rows_are_stored_and_the_others_listed(client: TestClient, inbox: Inbox) -> None:
    rows = [pair(1, user="u"), {"x": 1}, pair(1, user="u"), pair(2, rejected="yes"), 7]
    answer = client.post("/v1/feedback", json={"rows": rows})
    assert answer.status_code == 200
    assert answer.json() == {
        "stream": "taste",
        "stored": 1,
        "duplicates": 1,
        "numbers": [1, 1],
        "rejected": [
            {"index": 1, "reason": "neither a pair nor a rating"},
            {"index": 3, "reason": "equal sides"},
            {"index": 4, "reason": "not an object"},
        ],
    }
    (row,) = inbox.rows("taste")
    assert (row.source, row.user, row.state) == ("http", "u", "ready")


@pytest.mark.parametrize("body", [pair(1), [pair(1)], {"rows": [pair(1)]}])
def test_one_row_or_many(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/feedback?stream=taste", json=body)
    assert (answer.status_code, answer.json()["stored"]) == (200, 1)


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Basic " + TOKEN, f"Bearer {TOKEN}x", "Bearer \xe9"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/feedback"), ("GET", "/v1/stats")])
def test_without_the_token_nothing(
    client: TestClient, inbox: Inbox, header: str | None, method: str, path: str
) -> None:
    del client.headers["authorization"]
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = client.request(method, path, headers=headers, json=pair(1))
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert inbox.counts() == []


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[" * 5000, 413, "more than 4000 bytes"),
        (b"[" * 1000, 400, "not valid JSON"),
        (b'"text"', 400, "a list of rows, or one row"),
        (b"[]", 422, "no rows"),
        (b'{"rows": {}}', 400, "a list of rows, or one row"),
        (json.dumps([pair(i) for i in range(6)]).encode(), 413, "6 rows, at most 5"),
        (json.dumps({"prompt": "\ud800"}).encode(), 400, "not valid JSON"),
        (b'{"score": NaN}', 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
    ],
)
def test_a_request_that_is_refused(
    client: TestClient, inbox: Inbox, body: bytes, status: int, error: str
) -> None:
    answer = client.post("/v1/feedback", content=body)
    assert answer.status_code == status
    assert error in answer.json()["error"]
    assert inbox.counts() == []


def test_a_body_without_a_length_is_cut_off(client: TestClient, inbox: Inbox) -> None:
    answer = client.post("/v1/feedback", content=iter([b"x" * 1000] * 5))
    assert answer.status_code == 413
    assert inbox.counts() == []


def test_nothing_usable(client: TestClient) -> None:
    answer = client.post("/v1/feedback", json=pair(1, chosen="x" * 400))
    assert answer.status_code == 422
    assert answer.json()["rejected"] == [{"index": 0, "reason": "longer than 300 characters"}]


def test_an_unknown_stream(client: TestClient) -> None:
    answer = client.post("/v1/feedback?stream=tatse", json=pair(1))
    assert answer.status_code == 404
    assert "did you mean 'taste'" in answer.json()["error"]


def test_a_request_with_a_key(client: TestClient, inbox: Inbox) -> None:
    headers, rows = {"Idempotency-Key": "k"}, [pair(1), {"x": 1}]
    first = client.post("/v1/feedback", headers=headers, json=rows)
    again = client.post("/v1/feedback", headers=headers, json=rows)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = client.post("/v1/feedback", headers=headers, json=pair(2))
    assert (other.status_code, other.json()) == (
        422,
        {"error": "Idempotency-Key belongs to another request"},
    )
    assert inbox.waiting("taste").count == 1
    long = client.post("/v1/feedback", headers={"Idempotency-Key": "k" * 257}, json=pair(3))
    assert long.status_code == 400


def test_a_row_with_a_key(client: TestClient) -> None:
    rows = [pair(1, key="k"), pair(2, key="k"), pair(3)]
    answer = client.post("/v1/feedback", json=rows).json()
    assert (answer["stored"], answer["numbers"]) == (2, [1, 2])
    assert answer["rejected"] == [{"index": 1, "reason": "its key came with another row before"}]


def test_stats_and_health(client: TestClient) -> None:
    client.post("/v1/feedback", json=[pair(1), pair(1), {"x": 1}])
    stats = client.get("/v1/stats").json()
    assert stats["since_start"] == {"stored": 1, "duplicates": 1, "rejected": 1}
    assert stats["queued"] == 0
    assert [(s["stream"], s["waiting"]) for s in stats["streams"]] == [("taste", 1)]
    del client.headers["authorization"]
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_no_pages_for_developers(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (QueueFull(), "the queue is full; try again"),
        (WriterClosed(), "the rows could not be stored; try again"),
        (RunError("disk full"), "the rows could not be stored; try again"),
    ],
)
def test_back_pressure(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(writer: Writer, submission: Submission) -> None:
        raise error

    monkeypatch.setattr(Writer, "submit", refuse)
    answer = client.post("/v1/feedback", json=pair(1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": message}


class Arriving:
    """A request whose body comes in parts, and stops when it is told to."""

    def __init__(self, *parts: bytes) -> None:
        self.headers: dict[str, str] = {}
        self._parts = parts

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        yield b""


def test_bodies_are_bounded_together() -> None:
    receiver = Receiver(BodyLimits(body_bytes=100, held_bytes=150))

    async def receive(*parts: bytes) -> bytes:
        async with receiver.body(Arriving(*parts)) as body:  # type: ignore[arg-type]
            return body

    async def several() -> None:
        async with receiver.body(Arriving(b"x" * 60, b"x" * 40)) as held:  # type: ignore[arg-type]
            assert held == b"x" * 100
            assert await receive(b"y" * 50) == b"y" * 50
            with pytest.raises(Crowded):
                await receive(b"y" * 50, b"y")
            with pytest.raises(TimeoutError):
                async with receiver.body(Arriving(b"z")):  # type: ignore[arg-type]
                    raise TimeoutError
        assert await receive(b"y" * 100) == b"y" * 100

    asyncio.run(several())


def test_who_comes_when_too_much_arrives_is_asked_to_come_back(
    inbox: Inbox, tmp_path: Path
) -> None:
    limits = BodyLimits(held_bytes=10)
    app = make_app(inbox, {"taste": TASTE}, TOKEN, folder=tmp_path / "inbox", limits=limits)
    with TestClient(app, headers=HEADERS) as client:
        answer = client.post("/v1/feedback", json=pair(1))
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "too much arrives at once; try again"},
    )
    assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")


def test_health_is_that_of_the_drop_folder_too(
    client: TestClient, inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "SWEEP_S", 0.01)
    sweeping = Sweeper(tmp_path / "inbox", inbox, {})
    failures = [ZeroDivisionError("of the tests"), RunError("disk full")]
    passes: list[bool] = []

    def sweep_once() -> None:
        passes.append(sweeping.failing)
        if len(passes) == 4:
            raise KeyboardInterrupt
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(sweeping, "sweep_once", sweep_once)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(sweeping.run())
    assert passes == [False, True, True, False]
    app: Any = client.app
    desk = next(route.endpoint.__self__ for route in app.routes if route.path == "/healthz")

    second = threading.Event()
    unread_passes: list[None] = []

    def unread() -> None:
        if unread_passes:
            second.set()
        unread_passes.append(None)
        raise RunError("disk full")

    # The server's own loop sweeps. When its second pass fails, the first one has been noted.
    monkeypatch.setattr(desk.sweeper, "sweep_once", unread)
    assert second.wait(patient(30.0))
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"status": "the drop folder is not read"})


def test_the_server_takes_what_is_dropped_and_says_what_it_cannot(
    inbox: Inbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_drop(tmp_path / "inbox", {"taste": TASTE}) / "taste"
    for name, content in (("a.jsonl", "{"), ("b.jsonl", json.dumps(pair(1)))):
        (place / name).write_text(content)
        settled(place / name)
    Sweeper(tmp_path / "inbox", inbox, {"taste": TASTE}).sweep_once()
    assert inbox.waiting("taste").count == 1
    assert "drop folder: a.jsonl: " in capsys.readouterr().err


# The writer


class Slow(Inbox):
    """Stores nothing before it may, and remembers how it was asked."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox.database)
        self.may, self.asked = threading.Event(), threading.Event()
        self.groups: list[int] = []
        self.error: Exception | None = None

    def add_all(self, submissions: Any) -> list[Receipt]:
        self.asked.set()
        assert self.may.wait(patient(30.0))
        self.groups.append(len(submissions))
        if self.error is not None:
            raise self.error
        return super().add_all(submissions)


def one(number: int) -> Submission:
    return Submission(stream="taste", rows=(feedback(number),))


def test_what_queues_up_shares_a_commit(inbox: Inbox) -> None:
    slow = Slow(inbox)
    with Writer(slow) as writer:
        answers = [writer.submit(one(0))]
        assert slow.asked.wait(patient(30.0))
        answers += [writer.submit(one(number)) for number in range(1, 6)]
        gone = answers.pop(3)
        assert gone.cancel()
        assert writer.queued == 6
        assert not any(answer.done() for answer in answers)
        slow.may.set()
        assert [answer.result(30.0).numbers for answer in answers] == [(1,), (2,), (3,), (4,), (5,)]
    assert slow.groups == [1, 4]
    assert writer.queued == 0


@pytest.mark.parametrize("error", [None, RunError("disk full")])
def test_rows_have_left_the_queue_when_their_sender_hears(
    inbox: Inbox, error: RunError | None
) -> None:
    slow = Slow(inbox)
    slow.error = error
    counts: list[int] = []
    with Writer(slow) as writer:
        answer = writer.submit(one(0))
        answer.add_done_callback(lambda _: counts.append(writer.queued))
        slow.may.set()
    assert counts == [0]


def test_a_full_queue_refuses(inbox: Inbox) -> None:
    slow = Slow(inbox)
    with Writer(slow, max_rows=2) as writer:
        writer.submit(one(0))
        assert slow.asked.wait(patient(30.0))
        writer.submit(one(1))
        with pytest.raises(QueueFull):
            writer.submit(one(2))
        slow.may.set()
    assert inbox.waiting("taste").count == 2


def test_closing_stores_what_is_queued(inbox: Inbox) -> None:
    slow = Slow(inbox)
    with Writer(slow) as writer:
        answers = [writer.submit(one(number)) for number in range(4)]
        slow.may.set()
    assert all(answer.result(0.0).count("stored") == 1 for answer in answers)
    with pytest.raises(WriterClosed):
        writer.submit(one(9))


def test_a_commit_that_fails_is_told_and_the_next_is_tried(inbox: Inbox) -> None:
    slow = Slow(inbox)
    slow.may.set()
    slow.error = RunError("disk full")
    with Writer(slow) as writer:
        with pytest.raises(RunError, match="disk full"):
            writer.submit(one(0)).result(30.0)
        slow.error = None
        assert writer.submit(one(0)).result(30.0).outcomes == ("stored",)


# The token


def test_a_token_is_made_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "inbox" / "token"
    token = read_token(file, option="--token-file")
    assert len(token) >= 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert read_token(file, option="--token-file") == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(UserError, match="at least 16"):
        read_token(tmp_path / "short", option="--key")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_token(tmp_path / "link", option="--key")
    assert "name a file that this user can read, or may make, with --key" in str(caught.value)
    with pytest.raises(UserError):
        read_token(tmp_path, option="--key")


def test_who_bears_the_token() -> None:
    assert is_bearer("Bearer secret", "secret")
    assert is_bearer("bearer  secret", "secret")
    assert not is_bearer("Bearer secret2", "secret")
    assert not is_bearer("secret", "secret")
    assert not is_bearer("", "secret")
