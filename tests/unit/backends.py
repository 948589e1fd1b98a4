"""Servers for the tests of serving: small ASGI applications on loopback, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn

from launch.feedback.body import BodyLimits
from launch.listening import listen
from launch.serving.proxy import LIMITS, Proxy
from launch.serving.route import Backend, Route
from launch.serving.swapper import Swapper, SwapPolicy
from rollouts.errors import RunError
from tests.patience import patient

KEY = "sk-public-key-of-the-test"
PATIENCE_S = patient(30.0)
SNAPSHOT = "x-keel-snapshot"


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The address of an application that answers; whatever it still does is cut at the end."""
    with listen("127.0.0.1", 0) as socket:
        config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False)
        server = uvicorn.Server(config)
        # Not `serve`: that is for processes of their own, whose signals it takes.
        running = asyncio.create_task(server._serve(sockets=[socket]))
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await running
            for connection in list(server.server_state.connections):
                connection.transport.abort()


class Echo:
    """A `Backend` that says who it is; ``release`` lets streams and slow answers go on."""

    def __init__(self, snapshot: str) -> None:
        self.snapshot, self.key, self.url = snapshot, f"sk-{snapshot}", ""
        self.release = asyncio.Event()
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.left: list[str] = []
        self.running, self.cut_at_stop, self.stopped, self.dead = 0, 0, False, False
        self._ends: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Echo:
        """Listen."""
        up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with listening(self) as url:
                up.set_result(url)
                await self._ends.wait()

        self._task = asyncio.create_task(run())
        self.url = await up
        return self

    def alive(self) -> bool:
        return not self.stopped and not self.dead

    async def stop(self) -> None:
        if self.stopped:
            return
        self.stopped, self.cut_at_stop = True, self.running
        self._ends.set()
        assert self._task is not None
        await self._task

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["raw_path"].decode()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((path, headers))
        while (await receive()).get("more_body"):
            pass
        self.running += 1
        leaving = asyncio.create_task(self._watch(path, receive))
        try:
            await self._answer(path, send)
        finally:
            self.running -= 1
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving

    async def _answer(self, path: str, send: Any) -> None:
        if path == "/v1/slow":
            await self.release.wait()
        chunks = [json.dumps({"model": self.snapshot}).encode()]
        if path in ("/v1/stream", "/v1/half"):
            chunks = [f"data: {i} {self.snapshot}\n\n".encode() for i in range(3)]
        kind = b"text/event-stream" if len(chunks) > 1 else b"application/json"
        sent = [(b"content-type", kind), (b"connection", b"x-hop"), (b"x-hop", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        for index, chunk in enumerate(chunks):
            if index == 1 and path == "/v1/half":
                return
            if index == 1:
                await self.release.wait()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, path: str, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.append(path)


@dataclass(kw_only=True)
class World:
    """What may be served, what is wanted, and everything that was started and said."""

    wants: str = "a"
    start: Callable[[str], Awaitable[Backend]] | None = None
    started: list[Echo] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    looks: int = 0
    locked: bool = False

    def wanted(self) -> str:
        self.looks += 1
        if self.locked:
            raise RunError("the ledger could not be used")
        return self.wants

    async def echo(self, snapshot: str) -> Echo:
        self.started.append(await Echo(snapshot).start())
        return self.started[-1]

    def heard(self, words: str) -> bool:
        return any(words in line for line in self.said)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not reached():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def proxied(
    route: Route, said: list[str] | None = None, limits: BodyLimits = LIMITS
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a proxy over a route; it has the key."""
    said = [] if said is None else said
    async with httpx.AsyncHTTPTransport(trust_env=False) as transport:
        proxy = Proxy(route, transport, key=KEY, say=said.append, limits=limits)
        async with (
            listening(proxy) as url,
            httpx.AsyncClient(
                base_url=url,
                trust_env=False,
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=PATIENCE_S,
            ) as client,
        ):
            yield client


@asynccontextmanager
async def followed(world: World, **pace: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client, and the task of the follower behind its proxy."""
    route = Route()
    follower = Swapper(
        route,
        wanted=world.wanted,
        start=world.start or world.echo,
        say=world.said.append,
        pace=SwapPolicy(**{"poll_s": 0.01, "drain_s": PATIENCE_S, **pace}),
    )
    following = asyncio.create_task(follower.run())
    try:
        async with proxied(route, world.said) as client:
            yield client, following
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await follower.close()


async def ask(client: httpx.AsyncClient) -> str:
    """Who answered, and says so in the body and in the header."""
    answer = await client.post("/v1/completions", json={"prompt": "x"})
    assert answer.status_code == 200, answer.text
    assert answer.headers[SNAPSHOT] == answer.json()["model"]
    return answer.headers[SNAPSHOT]


async def healthy(client: httpx.AsyncClient) -> None:
    while (await client.get("/health")).status_code != 200:
        await asyncio.sleep(0.005)


def failing(world: World, *names: str) -> Callable[[str], Awaitable[Echo]]:
    """A start at which these snapshots do not come up."""

    async def start(snapshot: str) -> Echo:
        if snapshot in names:
            world.said.append(f"tried {snapshot}")
            raise RunError("vLLM ended before it was ready")
        return await world.echo(snapshot)

    return start
