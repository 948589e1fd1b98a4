"""A log that is followed through lost connections and a server that is away, each line once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from launch.cli import app
from launch.cluster.jobs import jobs
from launch.cluster.jobs.log import MAX_LINES, NUM_LINES, Log, last_lines
from rollouts.errors import KeelError, RunError, UserError
from tests.patience import patient

LINES = [f"step {number}\n" for number in range(6)]


class Head:
    """The jobs API of a cluster with one job, whose log grows by a line with every word on it.

    Args:
        cut: connections to the log break after so many new parts; None: it has no such connections.
        lines: what the job prints.
        ending: what the API says of the job when it has printed that; it succeeded by default.
    """

    def __init__(self, cut: int | None, *, lines: Sequence[str] = LINES, **ending: object) -> None:
        self.lines, self.ending = list(lines), {"status": "SUCCEEDED", **ending}
        self.cut, self.printed, self.asked, self.whole, self.tails = cut, 0, 0, 0, 0
        self.away: Callable[[int], bool] = lambda asked: False
        """Whether the request of that number fails."""
        self.silent = False

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "9.9.9", "ray_commit": "x"})

    async def job(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.away(self.asked):
            raise web.HTTPServiceUnavailable
        if request.match_info["id"] != "mine":
            raise web.HTTPNotFound
        ending = self.ending if self.printed == len(self.lines) else {"status": "RUNNING"}
        job = {"type": "SUBMISSION", "entrypoint": "", "submission_id": "mine", **ending}
        return web.json_response(job)

    async def logs(self, request: web.Request) -> web.Response:
        self.whole += 1
        if self.cut is None:
            self.printed = min(self.printed + 1, len(self.lines))
        return web.json_response({"logs": "".join(self.lines[: self.printed])})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        if self.cut is None:
            raise web.HTTPBadGateway
        self.tails += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        begun = self.printed
        for number, line in enumerate(self.lines):
            await socket.send_str(line)
            self.printed = max(self.printed, number + 1)
            if self.silent and number == 2:
                self.silent = False
                await asyncio.sleep(3600)
            if number + 1 == begun + self.cut < len(self.lines):
                request.transport.abort()  # type: ignore[union-attr]
                break
        return socket


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Head], str]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for name, value in (("RECONNECT_S", 0.0), ("POLL_S", 0.01), ("OUTAGE_S", patient(0.5))):
        monkeypatch.setattr(jobs, name, value)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start(head: Head) -> str:
        app = web.Application()
        app.router.add_get("/api/version", head.version)
        app.router.add_get("/api/jobs/{id}", head.job)
        app.router.add_get("/api/jobs/{id}/logs", head.logs)
        app.router.add_get("/api/jobs/{id}/logs/tail", head.tail)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def wait(work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, loop).result(patient(30))  # type: ignore[arg-type]

    yield lambda head: str(wait(start(head)))
    wait(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(patient(30))
    loop.close()


def followed(address: str, timeout_s: float | None = None) -> tuple[str, str]:
    written: list[str] = []
    job = jobs.Jobs(address).follow("mine", written.append, timeout_s)
    return job.status, "".join(written)


def test_one_connection_shows_it_all(serve: Callable[[Head], str]) -> None:
    head = Head(cut=100)
    assert followed(serve(head)) == ("SUCCEEDED", "".join(LINES))
    # The whole log is sent once more, when the job has ended, and not for every look at it.
    assert (head.tails, head.whole) == (1, 1)


def test_connections_break_and_requests_fail(serve: Callable[[Head], str]) -> None:
    head = Head(cut=2)
    head.away = lambda asked: asked in (2, 3, 5)
    assert followed(serve(head)) == ("SUCCEEDED", "".join(LINES))
    assert head.tails == 3


def test_a_way_there_that_passes_no_connections(serve: Callable[[Head], str]) -> None:
    head = Head(cut=None)
    assert followed(serve(head)) == ("SUCCEEDED", "".join(LINES))
    assert head.whole == len(LINES) + 1


def test_a_silent_connection_counts_as_lost(
    serve: Callable[[Head], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "QUIET_S", patient(0.5))
    head = Head(cut=100)
    head.silent = True
    assert followed(serve(head)) == ("SUCCEEDED", "".join(LINES))
    assert head.tails == 2


def test_a_server_that_stays_away_is_given_up(serve: Callable[[Head], str]) -> None:
    head = Head(cut=2)
    head.away = lambda asked: asked > 1
    with pytest.raises(KeelError, match="jobs API refused"):
        followed(serve(head))
    assert head.asked > 2


def test_time_is_up(serve: Callable[[Head], str]) -> None:
    head = Head(cut=100)
    head.silent = True
    assert followed(serve(head), timeout_s=patient(1.0)) == ("RUNNING", "".join(LINES[:3]))


def test_a_job_that_does_not_exist_is_not_waited_for(serve: Callable[[Head], str]) -> None:
    head = Head(cut=100)
    with pytest.raises(UserError, match="there is no job 'yours'"):
        jobs.Jobs(serve(head)).follow("yours", lambda text: None)
    assert head.asked == 1


def test_each_part_is_written_once() -> None:
    written: list[str] = []
    log = Log(written.append)
    for text, start in (("abc", 0), ("abc", 0), ("cde", 2), ("x", 1), ("abcdefg", 0), ("", 0)):
        log.write_rest(text, start)
    assert written == ["abc", "de", "fg"]


NO_ROOM = [
    "[  12.7s] waiting up to 120 s for room on the cluster\n",
    "error: --address: the campaign does not fit on the cluster after 120 s\n",
    "  what to do:   add nodes\n",
]
EXIT = "Job entrypoint command failed with exit code"
TAIL = "last available logs (truncated to 20,000 chars):"
TRACEBACK = "runtime_env setup failed: Failed to set up\nTraceback:\n  line 1\nOSError: disk full\n"


@pytest.mark.parametrize(
    ("lines", "ending", "expected"),
    [
        (
            NO_ROOM,
            {"status": "FAILED", "message": f"{EXIT} 2, {TAIL}\nwhat it printed"},
            [f"job mine failed after 152 s: {EXIT} 2. It printed last:", *NO_ROOM[1:]],
        ),
        # A process that was killed says nothing, so its last lines are all there is.
        (
            LINES,
            {"status": "FAILED", "message": f"{EXIT} -9, {TAIL}\n{LINES[-1]}"},
            [f"{EXIT} -9. It printed last:", *LINES],
        ),
        (
            ["\n"],
            {"status": "FAILED", "message": f"{EXIT} 1, {TAIL}\nthe log is gone"},
            [f"{EXIT} 1. It printed last:", "the log is gone"],
        ),
        (
            ["\n"],
            {"status": "FAILED", "message": TRACEBACK},
            [
                "runtime_env setup failed: Failed to set up ... OSError: disk full. It printed nothing"
            ],
        ),
        (LINES, {"status": "STOPPED"}, ["job mine was stopped after 152 s. It printed last:"]),
    ],
    ids=["its own error", "killed", "log gone", "never started", "stopped"],
)
def test_a_job_that_failed_says_why(
    serve: Callable[[Head], str],
    caplog: pytest.LogCaptureFixture,
    lines: list[str],
    ending: dict[str, object],
    expected: list[str],
) -> None:
    address = serve(Head(cut=100, lines=lines, start_time=1000, end_time=153_000, **ending))
    run = CliRunner().invoke(app, ["jobs", "logs", "mine", "--address", address, "--follow"])
    assert isinstance(run.exception, RunError), run.output
    message = str(run.exception).splitlines()
    start = message[0].removeprefix(f"{address}: ")
    assert start.endswith(expected[0])
    assert message[1 : len(expected)] == [f"    {line.rstrip()}" for line in expected[1:]]
    assert f"`keel jobs logs mine --address {address}`" in message[-1]
    assert run.stdout == "".join(lines)
    assert "close code" not in caplog.text + run.stderr


def test_the_end_of_a_log_begins_at_the_error_that_keel_named() -> None:
    steps = [f"step {number}" for number in range(100)]
    assert last_lines("\n".join(steps)) == steps[-NUM_LINES:]
    error = ["error: a: b", "  what to do:   c"]
    assert last_lines("\n".join([*steps, "error: an earlier one", *error, ""])) == error
    assert last_lines("\n".join([*error, *steps])) == steps[-NUM_LINES:]
    assert last_lines("\n".join([*error, *steps[: MAX_LINES - 2]])) == [
        *error,
        *steps[: MAX_LINES - 2],
    ]
    assert last_lines(" \n\n") == []
