"""Claim: feedback arrives at 2,000 pairs a second on two cores, and nothing that was acknowledged is lost.

A real `keel feedback serve` runs on loopback and answers after a durable commit (`synchronous=FULL`). Rate:
clients in their own process, on the same cores, send pairs one by one and in batches, for a bounded time.
Kill: while clients send, the server gets SIGKILL; every row that was acknowledged to a client must be in
the database afterwards, each once."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import Tree, keel_server, parser, prepare, save, show, spread, verdict

RATE = 2000
"""Claimed number of pairs a second."""
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
    """Requests that clients send."""

    connections: int
    rows: int
    """Number of rows in each request."""
    seconds: float
    """Time after which clients send no more requests."""
    first: int = 0
    """Number of the first pair; no pair is sent twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Running `keel feedback serve`."""

    process: subprocess.Popen[str]
    port: int
    token: str

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far."""
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
    """Measure the acknowledged pairs a second, and the server's CPU seconds for a pair, run by run."""
    figures: dict[str, list[float]] = {"pairs_s": [], "cpu_s": []}
    with serving(folder / f"rate-{rows}") as server:
        for run in range(args.repeats + 1):
            load = Load(
                connections=args.connections,
                rows=rows,
                seconds=args.seconds if run else 1.0,
                first=run * 10_000_000,
            )
            before = server.cpu_s()
            acknowledged, seconds = clients(server, load)
            if run:
                figures["pairs_s"].append(len(acknowledged) / seconds)
                figures["cpu_s"].append((server.cpu_s() - before) / len(acknowledged))
        server.process.terminate()
        if server.process.wait(60.0) != 0:
            raise RuntimeError(f"the server ended with {server.process.returncode}")
    return figures


def kill(folder: Path, args: Any, round: int) -> dict[str, int]:
    """Count the rows that were acknowledged before a SIGKILL, and those of them that are stored."""
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
        acknowledged, _ = queue.get()
        process.join()
    database = folder / f"kill-{round}" / "store" / "ledger.db"
    with closing(sqlite3.connect(database)) as connection:
        stored = {
            number: json.loads(payload)["prompt"]
            for number, payload in connection.execute("SELECT number, payload FROM inbox_rows")
        }
    lost = sum(stored.get(number) != prompt for number, prompt in acknowledged)
    twice = len(stored) - len(set(stored.values()))
    return {"acknowledged": len(acknowledged), "stored": len(stored), "lost": lost, "twice": twice}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run a server on a free port, and end it in any case."""
    folder.mkdir(parents=True)
    file = folder / "campaign.yaml"
    file.write_text(json.dumps({**CAMPAIGN, "store": str(folder / "store")}))
    with keel_server("feedback", "serve", str(file), "--port", "0") as (process, address):
        yield Server(
            process=process,
            port=int(address.rpartition(":")[2]),
            token=(folder / "store" / "inbox" / "token").read_text().strip(),
        )


def clients(server: Server, load: Load) -> tuple[list[tuple[int, str]], float]:
    """Send the load from another process.

    Returns:
        number and prompt of every pair that the server acknowledged, and the seconds it took.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_client_process, args=(server.port, server.token, load, queue))
    process.start()
    acknowledged, seconds = queue.get()
    process.join()
    return acknowledged, seconds


def report(data: dict[str, Any], args: Any) -> None:
    """Print the table."""
    rows = []
    for name, size in (("batches", f"{args.batch} pairs"), ("singles", "one pair")):
        speeds, costs = data[name]["pairs_s"], data[name]["cpu_s"]
        claimed = f"at least {RATE:,}" if name == "batches" else ""
        rows += [
            [f"{size} a request: pairs a second", spread(speeds, 0), claimed,
             verdict(min(speeds) >= RATE) if claimed else ""],
            ["  CPU of the server, ms a pair", spread([1e3 * cost for cost in costs]), "", ""],
        ]  # fmt: skip
    lost = sum(run["lost"] + run["twice"] for run in data["kills"])
    acknowledged = sum(run["acknowledged"] for run in data["kills"])
    rows.append(
        [f"lost or doubled of {acknowledged:,} acknowledged, {len(data['kills'])} SIGKILLs", str(lost),
         "0", verdict(lost == 0 and acknowledged > 0)]
    )  # fmt: skip
    show("Feedback over HTTP", ["", "measured", "claimed", ""], rows)


def _client_process(port: int, token: str, load: Load, queue: Any) -> None:
    started = time.perf_counter()
    acknowledged = asyncio.run(_send_all(port, token, load))
    queue.put((acknowledged, time.perf_counter() - started))


async def _send_all(port: int, token: str, load: Load) -> list[tuple[int, str]]:
    until = time.monotonic() + load.seconds
    each = [
        _send(port, token, load, load.first + 100_000 * index, until)
        for index in range(load.connections)
    ]
    return [pair for pairs in await asyncio.gather(*each) for pair in pairs]


async def _send(
    port: int, token: str, load: Load, first: int, until: float
) -> list[tuple[int, str]]:
    """Send one request after another on one connection, until the time or the server ends.

    Returns:
        number and prompt of every pair that the server acknowledged.
    """
    acknowledged: list[tuple[int, str]] = []
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            prompts = [f"Question {first + index}?" for index in range(load.rows)]
            first += load.rows
            writer.write(_request(token, prompts))
            answer = await _answer(reader)
            acknowledged.extend(zip(answer["numbers"], prompts, strict=True))
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        pass
    return acknowledged


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


def _until_rows(folder: Path, count: int) -> None:
    """Wait until ``count`` rows are stored."""
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
