"""Claim: feedback arrives at 2,000 pairs a second on two cores, and nothing that was acknowledged is lost.

A real `keel feedback serve` on loopback, every answer after a durable commit (`synchronous=FULL`). Rate:
clients in a process of their own, on the same cores, send pairs one by one and in batches, for a bounded
time. Kill: while clients send, the server gets SIGKILL; every row that a client was told is stored must be
in the database afterwards, each once.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import Tree, parser, prepare, save, show, spread, verdict

RATE = 2000
"""Pairs a second."""
START_S = 120.0
STREAM = "taste"
CAMPAIGN = {
    "name": "feedback",
    "policy": {"model": "demo://digits"},
    "rounds": [
        {
            "name": "first",
            "algorithm": {"name": "dpo", "pairs": "file"},
            "data": {"source": f"inbox://{STREAM}"},
            "steps": 1,
        }
    ],
}
WORDS = "the tide comes in twice a day and the keel keeps the boat upright in any wind "


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What clients send."""

    connections: int
    rows: int
    """Of one request."""
    seconds: float
    """They stop asking after so long."""
    first: int = 0
    """Number of the first pair: no pair is sent twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    token: str

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        return Tree(self.process.pid).cpu_s()


def main() -> None:
    """Measure and print."""
    prepare()
    options = parser("Feedback over HTTP.")
    options.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options.add_argument(
        "--batch", type=int, default=50, help="pairs of a request that has several"
    )
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--folder", type=Path, help="where the database lies; a temporary one")
    args = options.parse_args()
    if args.quick:
        args.seconds, args.repeats, args.kills = 2.0, 1, 1
    with TemporaryDirectory(prefix="feedback-", dir=args.folder) as folder:
        data = {
            "batches": rates(Path(folder), args, args.batch),
            "singles": rates(Path(folder), args, 1),
            "kills": [kill(Path(folder), args, round) for round in range(args.kills)],
        }
    report(data, args)
    save(args.json, "feedback", args, data)


def rates(folder: Path, args: Any, rows: int) -> dict[str, list[float]]:
    """Pairs a second that were acknowledged, and CPU seconds of the server for each, run by run."""
    found: dict[str, list[float]] = {"pairs_s": [], "cpu_s": []}
    with serving(folder / f"rate-{rows}") as server:
        for run in range(args.repeats + 1):
            load = Load(
                connections=args.connections,
                rows=rows,
                seconds=args.seconds if run else 1.0,
                first=run * 10_000_000,
            )
            before = server.cpu_s()
            told, seconds = clients(server, load)
            if run:
                found["pairs_s"].append(len(told) / seconds)
                found["cpu_s"].append((server.cpu_s() - before) / len(told))
        stop(server)
    return found


def kill(folder: Path, args: Any, round: int) -> dict[str, int]:
    """Rows that were acknowledged before a SIGKILL, and how many of them are stored."""
    with serving(folder / f"kill-{round}") as server:
        load = Load(connections=args.connections, rows=1 + 4 * (round % 2), seconds=30.0)
        context = multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(
            target=_client_process, args=(server.port, server.token, load, queue)
        )
        process.start()
        _until_rows(folder / f"kill-{round}", 200)
        time.sleep(0.3 + 0.2 * round)
        os.kill(server.process.pid, signal.SIGKILL)
        told, _ = queue.get()
        process.join()
    database = folder / f"kill-{round}" / "store" / "ledger.db"
    with closing(sqlite3.connect(database)) as connection:
        stored = {
            number: json.loads(payload)["prompt"]
            for number, payload in connection.execute("SELECT number, payload FROM inbox_rows")
        }
    lost = sum(stored.get(number) != prompt for number, prompt in told)
    twice = len(stored) - len(set(stored.values()))
    return {"acknowledged": len(told), "stored": len(stored), "lost": lost, "twice": twice}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server on a free port, ended in any case."""
    folder.mkdir(parents=True)
    file = folder / "campaign.yaml"
    file.write_text(json.dumps({**CAMPAIGN, "store": str(folder / "store")}))
    code = "from launch.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "feedback", "serve", str(file), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        yield Server(
            process=process,
            port=_port(process),
            token=(folder / "store" / "inbox" / "token").read_text().strip(),
        )
    finally:
        process.kill()
        process.wait()


def stop(server: Server) -> None:
    """Ask it to end."""
    server.process.terminate()
    if server.process.wait(60.0) != 0:
        raise RuntimeError(f"the server ended with {server.process.returncode}")


def clients(server: Server, load: Load) -> tuple[list[tuple[int, str]], float]:
    """Number and prompt of every pair that the server said is stored, and the seconds it took."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_client_process, args=(server.port, server.token, load, queue))
    process.start()
    told, seconds = queue.get()
    process.join()
    return told, seconds


def report(data: dict[str, Any], args: Any) -> None:
    """The table."""
    rows = []
    for name, size in (("batches", f"{args.batch} pairs"), ("singles", "one pair")):
        speeds, costs = data[name]["pairs_s"], data[name]["cpu_s"]
        claimed = f"at least {RATE:,}" if name == "batches" else ""
        rows += [
            [f"{size} a request: pairs a second", spread(speeds, 0), claimed,
             verdict(min(speeds) >= RATE) if claimed else ""],
            ["  CPU of the server, ms a pair", spread([1e3 * cost for cost in costs]), "", ""],
        ]  # fmt: skip
    lost = sum(one["lost"] + one["twice"] for one in data["kills"])
    told = sum(one["acknowledged"] for one in data["kills"])
    rows.append(
        [f"lost or doubled of {told:,} acknowledged, {len(data['kills'])} SIGKILLs", str(lost), "0",
         verdict(lost == 0 and told > 0)]
    )  # fmt: skip
    show("Feedback over HTTP", ["", "measured", "claimed", ""], rows)


def _client_process(port: int, token: str, load: Load, queue: Any) -> None:
    started = time.perf_counter()
    told = asyncio.run(_send_all(port, token, load))
    queue.put((told, time.perf_counter() - started))


async def _send_all(port: int, token: str, load: Load) -> list[tuple[int, str]]:
    until = time.monotonic() + load.seconds
    each = [
        _send(port, token, load, load.first + 100_000 * index, until)
        for index in range(load.connections)
    ]
    return [told for one in await asyncio.gather(*each) for told in one]


async def _send(
    port: int, token: str, load: Load, first: int, until: float
) -> list[tuple[int, str]]:
    """One connection, one request after another; ends when the server does."""
    told: list[tuple[int, str]] = []
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            prompts = [f"Question {first + index}?" for index in range(load.rows)]
            first += load.rows
            writer.write(_request(token, prompts))
            answer = await _answer(reader)
            told.extend(zip(answer["numbers"], prompts, strict=True))
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
    return told


def _request(token: str, prompts: list[str]) -> bytes:
    rows = [
        {"prompt": p, "chosen": WORDS * 2, "rejected": WORDS, "user": f"u{i}"}
        for i, p in enumerate(prompts)
    ]
    body = json.dumps(rows[0] if len(rows) == 1 else {"rows": rows}).encode()
    head = (
        f"POST /v1/feedback HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    if " 200 " not in head.split("\r\n")[0]:
        raise RuntimeError(f"{head} {body!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def _port(process: subprocess.Popen[str]) -> int:
    """The port that the server names when it is ready; its first lines say other things."""
    assert process.stderr is not None
    until = time.monotonic() + START_S
    lines = []
    while time.monotonic() < until and (line := process.stderr.readline()):
        lines.append(line)
        if "listening on" in line:
            return int(line.rpartition(":")[2])
    raise RuntimeError("the server did not start: " + "".join(lines))


def _until_rows(folder: Path, count: int) -> None:
    """Wait until so many rows are stored."""
    until = time.monotonic() + START_S
    query = "SELECT count(*) FROM inbox_rows"
    while time.monotonic() < until:
        with closing(sqlite3.connect(folder / "store" / "ledger.db")) as connection:
            if connection.execute(query).fetchone()[0] >= count:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no {count} rows within {START_S:g} s")


if __name__ == "__main__":
    main()
