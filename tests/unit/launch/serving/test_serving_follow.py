"""What is served while what is wanted changes: no request is lost, and a failed start changes nothing."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from rollouts.errors import RunError
from tests.unit.backends import SNAPSHOT, Echo, World, ask, failing, followed, healthy, until


def test_no_request_is_lost_while_the_alias_moves_to_and_fro() -> None:
    async def scene() -> None:
        world, answered = World(), []
        async with followed(world) as (client, _):
            await healthy(client)

            async def load() -> None:
                while len(answered) < 400:
                    answered.append(await ask(client))

            async def move() -> None:
                for index, wants in enumerate("bcab"):
                    await until(lambda mark=60 * (index + 1): len(answered) >= mark)
                    world.wants = wants
                    await until(lambda: world.heard(f"serving {world.wants}"))
                    world.said.clear()

            await asyncio.gather(move(), *(load() for _ in range(16)))
            await until(lambda: [one.stopped for one in world.started] == [True] * 4 + [False])
        assert set(answered) == {"a", "b", "c"}
        assert [one.snapshot for one in world.started] == list("abcab")
        assert [one.cut_at_stop for one in world.started] == [0] * 5
        assert all(one.stopped for one in world.started)

    asyncio.run(scene())


def test_a_slow_stream_ends_where_it_began() -> None:
    async def scene() -> None:
        world = World()
        async with followed(world) as (client, _):
            await healthy(client)
            async with client.stream("POST", "/v1/stream") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "data: 0 a"
                world.wants = "b"
                await until(lambda: world.heard("serving b"))
                assert await ask(client) == "b"
                first, _second = world.started
                assert not first.stopped and first.running == 1
                first.release.set()
                assert [line async for line in lines if line] == ["data: 1 a", "data: 2 a"]
                assert stream.headers[SNAPSHOT] == "a"
            await until(lambda: first.stopped)
            assert first.cut_at_stop == 0

    asyncio.run(scene())


def test_what_runs_too_long_is_cut_and_said() -> None:
    async def scene() -> None:
        world = World()
        async with followed(world, drain_s=0.05) as (client, _):
            await healthy(client)
            with pytest.raises(httpx.RemoteProtocolError):
                async with client.stream("POST", "/v1/stream") as stream:
                    lines = stream.aiter_lines()
                    await anext(lines)
                    world.wants = "b"
                    async for _ in lines:
                        pass
            assert world.heard("1 requests on a took too long")
            assert await ask(client) == "b"

    asyncio.run(scene())


@pytest.mark.parametrize("swap", ["overlap", "restart"])
def test_a_snapshot_that_does_not_come_up_changes_nothing(swap: str) -> None:
    async def scene() -> None:
        world = World()
        world.start = failing(world, "b")
        async with followed(world, swap=swap, again_s=1e6) as (client, following):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("b did not come up: vLLM ended"))
            await healthy(client)
            looks = world.looks
            await until(lambda: world.looks > looks + 5)
            assert await ask(client) == "a"
            assert world.said.count("tried b") == 1, "not again before its time"
            world.wants = "c"
            await until(lambda: world.heard("serving c"))
            assert await ask(client) == "c"
            assert not following.done()

    asyncio.run(scene())


def test_a_snapshot_that_did_not_come_up_is_tried_again() -> None:
    async def scene() -> None:
        world = World()
        world.start = failing(world, "b")
        async with followed(world, again_s=0.01) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.said.count("tried b") == 2)
            world.start = None

    asyncio.run(scene())


def test_a_server_that_is_no_longer_wanted_gets_no_request() -> None:
    """The alias is rolled back while the new server starts."""

    async def scene() -> None:
        world, go_on = World(), asyncio.Event()

        async def start(snapshot: str) -> Echo:
            found = await world.echo(snapshot)
            if snapshot == "b":
                world.said.append("b comes up")
                await go_on.wait()
            return found

        world.start = start
        async with followed(world, poll_s=0.02) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("b comes up"))
            world.wants = "a"
            await until(lambda: world.heard("b is no longer wanted"))
            go_on.set()
            assert await ask(client) == "a"
        assert world.started[1].asked == []
        await world.started[1].stop()

    asyncio.run(scene())


def test_an_alias_is_looked_at_again_before_the_switch() -> None:
    """It is rolled back in the moment in which the new server is ready."""

    async def scene() -> None:
        world = World()

        async def start(snapshot: str) -> Echo:
            found = await world.echo(snapshot)
            world.wants = "a"
            return found

        world.start = start
        async with followed(world) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("a stays"))
            assert await ask(client) == "a"
            assert world.started[1].stopped and world.started[1].asked == []

    asyncio.run(scene())


def test_restart_tells_clients_to_come_again() -> None:
    async def scene() -> None:
        world, go_on = World(), asyncio.Event()

        async def start(snapshot: str) -> Echo:
            assert all(one.stopped for one in world.started), "there is memory for one"
            if snapshot == "b":
                await go_on.wait()
            return await world.echo(snapshot)

        world.start = start
        async with followed(world, swap="restart") as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.started[0].stopped)
            answer = await client.post("/v1/completions", json={})
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert (await client.get("/health")).status_code == 503
            go_on.set()
            await healthy(client)
            assert await ask(client) == "b"

    asyncio.run(scene())


def test_the_first_server_must_come_up() -> None:
    async def scene() -> None:
        world = World()
        world.start = failing(world, "a")
        async with followed(world) as (client, following):
            with pytest.raises(RunError, match="vLLM ended"):
                await following
            assert (await client.get("/health")).status_code == 503

    asyncio.run(scene())


def test_an_alias_that_cannot_be_read_changes_nothing() -> None:
    async def scene() -> None:
        world = World()
        async with followed(world) as (client, _):
            await healthy(client)
            world.locked = True
            await until(lambda: world.heard("cannot look at the alias"))
            assert await ask(client) == "a"

    asyncio.run(scene())
