"""Claim: of 10,000 requests none is lost while the served snapshot is swapped.

Requests go through the proxy of `keel serve --follow`, on loopback, 16 at a time, one in ten of them
streamed. A request is lost unless it ends with status 200, a whole body, and the same snapshot in header
and body; nothing is tried again. *light*: the servers behind the proxy are small processes that answer
after some milliseconds and are killed once they are drained; the alias moves many times. *vLLM*: `keel
serve` itself on the demo model and one promotion through the ledger; clients go on until the new snapshot
answers. Without a GPU vLLM takes most of that time to start, on the same cores that answer requests."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.common import keel_server, middle, parser, prepare, save, show, verdict

KEY = "sk-of-the-benchmark"
START_S = 600.0
STREAMED = 10
"""Number of requests, of which one is streamed."""
CAMPAIGN = {
    "name": "swapped",
    "policy": {"model": "demo://digits"},
    "rounds": [
        {"name": "first", "prompts": "demo://rev?n=60", "rewards": ["exact_match"], "steps": 1}
    ],
}


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts of answered and lost requests, and the seconds of each answer."""

    answered: Counter[str] = field(default_factory=Counter)
    """Number of answered requests by snapshot."""
    lost: Counter[str] = field(default_factory=Counter)
    """Number of lost requests by reason."""
    seconds: list[float] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Number of all requests."""
        return self.answered.total() + self.lost.total()

    def summary(self, swaps: int, wall_s: float) -> dict[str, Any]:
        """Summarise the counts and seconds for the report."""
        ordered = sorted(self.seconds)
        return {
            "sent": self.sent,
            "lost": dict(self.lost),
            "swaps": swaps,
            "requests_s": self.sent / wall_s,
            "median_ms": 1e3 * middle(ordered),
            "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
            "longest_ms": 1e3 * ordered[-1],
        }


def main() -> None:
    """Measure and print."""
    prepare()
    options = parser("Requests lost during a swap.")
    options.add_argument("--requests", type=int, default=10_000, help="to light servers; 0: none")
    options.add_argument("--swaps", type=int, default=20, help="of light servers")
    options.add_argument("--vllm-requests", type=int, default=500, help="at least; 0: no vLLM")
    options.add_argument("--connections", type=int, default=16)
    args = options.parse_args()
    if args.quick:
        args.requests, args.swaps, args.vllm_requests = 500, 4, 0
    with TemporaryDirectory(prefix="swap-") as folder:
        data = {}
        if args.requests:
            data["light"] = asyncio.run(light(Path(folder), args))
        if args.vllm_requests:
            data["vLLM"] = asyncio.run(real(Path(folder), args))
    report(data, args)
    save(args.json, "swap", args, data)


async def light(folder: Path, args: Any) -> dict[str, Any]:
    """Swap small servers while clients send; the alias is a file."""
    alias = folder / "alias"
    _move(alias, 0)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_proxy_process, args=(alias, sender))
    process.start()
    sender.close()
    try:
        url = f"http://127.0.0.1:{receiver.recv()}"

        async def move(tally: Tally) -> None:
            for swap in range(1, args.swaps + 1):
                await _until(
                    lambda swap=swap: tally.sent * (args.swaps + 1) >= swap * args.requests
                )
                _move(alias, swap)
                await _until(lambda swap=swap: tally.answered[_name(swap)] > 0)

        return await load(url, KEY, "light", args.requests, args.connections, move, args.swaps)
    finally:
        process.terminate()
        process.join()


async def real(folder: Path, args: Any) -> dict[str, Any]:
    """Promote a snapshot while clients send requests to `keel serve`."""
    campaign, promote = published(folder)
    with keel_server("serve", str(campaign), "--follow", "--port", "0") as (_, address):
        url = address.removesuffix("/v1")
        key = (campaign.parent / "store" / "serving" / "key").read_text().strip()

        async def move(tally: Tally) -> None:
            await _until(lambda: tally.sent * 4 >= args.vllm_requests)
            target = await asyncio.to_thread(promote)
            await _until(lambda: tally.answered[target] * 4 >= args.vllm_requests)

        return await load(url, key, CAMPAIGN["name"], args.vllm_requests, args.connections, move, 1)


async def load(
    url: str,
    key: str,
    model: str,
    requests: int,
    connections: int,
    move: Callable[[Tally], Awaitable[None]],
    swaps: int,
) -> dict[str, Any]:
    """Send at least ``requests`` requests, and go on until the last move is done."""
    tally = Tally()
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        limits=limits,
        timeout=120.0,
        trust_env=False,
    ) as client:
        async with asyncio.timeout(START_S):
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.1)
        began = time.perf_counter()
        moving = asyncio.create_task(_as_task(move(tally)))

        async def send() -> None:
            while tally.sent < requests or not moving.done():
                await ask(client, model, tally)

        await asyncio.gather(*(send() for _ in range(connections)))
        await moving
        return tally.summary(swaps, time.perf_counter() - began)


async def ask(client: httpx.AsyncClient, model: str, tally: Tally) -> None:
    """Request one completion of one token and count the result; nothing is tried again."""
    streamed = tally.sent % STREAMED == 0
    question = {"model": model, "prompt": [3, 4, 5], "max_tokens": 1, "stream": streamed}
    began = time.perf_counter()
    try:
        answer = await client.post("/v1/completions", json=question)
    except httpx.HTTPError as error:
        tally.lost[type(error).__name__] += 1
        return
    snapshot = answer.headers.get("x-keel-snapshot", "")
    if answer.status_code != 200:
        tally.lost[f"status {answer.status_code}"] += 1
    elif f"{model}@{snapshot[:16]}" not in answer.text:
        tally.lost["wrong snapshot"] += 1
    elif streamed and "data: [DONE]" not in answer.text:
        tally.lost["cut stream"] += 1
    else:
        tally.answered[snapshot] += 1
        tally.seconds.append(time.perf_counter() - began)


def report(data: dict[str, Any], args: Any) -> None:
    """Print the table."""
    rows = [
        [
            f"{name}, {summary['swaps']} swap{'s' if summary['swaps'] > 1 else ''}",
            f"{sum(summary['lost'].values())} of {summary['sent']:,}",
            f"{summary['requests_s']:.0f}",
            f"{summary['median_ms']:.0f}",
            f"{summary['p99_ms']:.0f}",
            f"{summary['longest_ms']:.0f}",
            verdict(not summary["lost"]),
        ]
        for name, summary in data.items()
    ]
    columns = ["servers", "lost", "requests/s", "median ms", "99% ms", "longest ms", "claim"]
    reasons = [f"{name}: {summary['lost']}" for name, summary in data.items() if summary["lost"]]
    show(f"Requests lost, {args.connections} at a time", columns, rows, *reasons)


# Light servers.


def _name(swap: int) -> str:
    return f"{swap:064x}"


def _move(alias: Path, swap: int) -> None:
    staged = alias.with_suffix(".part")
    staged.write_text(_name(swap))
    staged.rename(alias)


class LightServer:
    """Backend (`launch.serving.route.Backend`) that is a process with a small application."""

    def __init__(self, snapshot: str) -> None:
        self.snapshot, self.key = snapshot, KEY
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe()
        self._process = context.Process(target=_light_process, args=(snapshot, sender))
        self._process.start()
        sender.close()
        self.url = f"http://127.0.0.1:{self._receiver.recv()}"

    def alive(self) -> bool:
        """Tell if the process runs."""
        return self._process.is_alive()

    async def stop(self) -> None:
        """Kill the process; requests that it has not answered are lost."""
        self._process.kill()
        await asyncio.to_thread(self._process.join)


def _proxy_process(alias: Path, port: Any) -> None:
    from launch.listening import listen
    from launch.serving.serve import run
    from launch.serving.swapper import SwapPolicy

    async def start(snapshot: str) -> LightServer:
        return await asyncio.to_thread(LightServer, snapshot)

    with listen("127.0.0.1", 0) as listening:
        port.send(listening.getsockname()[1])
        asyncio.run(
            run(
                listening,
                wanted=alias.read_text,
                start=start,
                key=KEY,
                pace=SwapPolicy(poll_s=0.05, drain_s=30.0),
                say=lambda text: None,
            )
        )


def _light_process(snapshot: str, port: Any) -> None:
    import uvicorn

    body = json.dumps({"model": f"light@{snapshot[:16]}"}).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent = b""
        while True:
            message = await receive()
            sent += message.get("body", b"")
            if not message.get("more_body"):
                break
        streamed = json.loads(sent)["stream"]
        parts = [b"data: " + body + b"\n\n", b"data: [DONE]\n\n"] if streamed else [body]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await asyncio.sleep(random.uniform(0.002, 0.02))
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        config = uvicorn.Config(
            app, lifespan="off", log_level="critical", access_log=False, timeout_keep_alive=600
        )
        port.send(listening.getsockname()[1])
        uvicorn.Server(config).run(sockets=[listening])


# The real one.


def published(folder: Path) -> tuple[Path, Callable[[], str]]:
    """Write a campaign with a base in its store; return its file, and a function that promotes a snapshot.

    The function returns the id of the promoted snapshot.
    """
    from align.config.campaign import CampaignConfig
    from align.data.demo import BASE_MODEL
    from align.store.ledger.ledger import Ledger
    from align.store.snapshots.snapshots import Provenance, Snapshot, SnapshotStore

    config = CampaignConfig.model_validate({**CAMPAIGN, "store": str(folder / "store")})
    ledger, store = (
        Ledger(f"sqlite:///{folder / 'store' / 'ledger.db'}"),
        SnapshotStore(folder / "store"),
    )
    ledger.open_campaign(config.name, config.content(), config.hash())

    def publish(name: str | None, parent: str | None) -> Snapshot:
        def copy(to: Path) -> None:
            for file in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ):
                copyfile(BASE_MODEL / file, to / file)

        snapshot = store.publish(copy, Provenance(kind="model", round=name, parent=parent))
        ledger.record_snapshot(snapshot)
        return snapshot

    base = publish(None, None)
    ledger.set_alias_initial("production", base.id)

    def promote() -> str:
        attempt = ledger.begin_round(0, "first", base.id)
        candidate = publish("first", base.id)
        ledger.enter_gating(0, attempt, candidate.id)
        ledger.commit_round(0, attempt, "accepted", candidate.id, {"verdict": "accepted"})
        return candidate.id

    file = folder / "campaign.yaml"
    file.write_text(json.dumps({**CAMPAIGN, "store": str(folder / "store")}))
    return file, promote


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(START_S):
        while not reached():
            await asyncio.sleep(0.02)


async def _as_task(work: Awaitable[None]) -> None:
    await work


if __name__ == "__main__":
    main()
