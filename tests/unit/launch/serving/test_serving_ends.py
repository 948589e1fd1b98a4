"""Servers that end by themselves or do not come up: what answers then, and when it is given up."""

from __future__ import annotations

import asyncio

import pytest

from rollouts.errors import RunError
from tests.unit.backends import SNAPSHOT, Echo, World, ask, failing, followed, healthy, until


def test_a_server_that_ends_by_itself_is_replaced() -> None:
    async def scene() -> None:
        world = World()
        async with followed(world, follow=False) as (client, _):
            await healthy(client)
            world.started[0].dead = True
            await until(lambda: len(world.started) == 2 and world.said[-1] == "serving a")
            world.wants = "b"
            assert await ask(client) == "a", "it does not follow"
            assert world.started[0].stopped

    asyncio.run(scene())


def test_servers_that_keep_ending_end_the_follower() -> None:
    async def scene() -> None:
        world = World()

        async def start(snapshot: str) -> Echo:
            found = await world.echo(snapshot)
            found.dead = True
            return found

        world.start = start
        async with followed(world, max_restarts=2) as (_, following):
            with pytest.raises(RunError, match="3 servers in a row ended by themselves"):
                await following
        assert len(world.started) == 3
        assert all(one.stopped for one in world.started)

    asyncio.run(scene())


def test_a_server_that_ends_while_the_next_one_starts_gets_no_more_requests() -> None:
    async def scene() -> None:
        world, go_on = World(), asyncio.Event()

        async def start(snapshot: str) -> Echo:
            if snapshot == "b":
                world.said.append("b comes up")
                await go_on.wait()
            return await world.echo(snapshot)

        world.start = start
        async with followed(world) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("b comes up"))
            world.started[0].dead = True
            await until(lambda: world.heard("the server of a ended by itself"))
            answer = await client.post("/v1/completions", json={})
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert world.started[0].asked == []
            go_on.set()
            await healthy(client)
            assert await ask(client) == "b"
            await until(lambda: world.started[0].stopped)
        assert [one.snapshot for one in world.started] == ["a", "b"]

    asyncio.run(scene())


def test_a_rollback_rescues_when_the_next_one_hangs_and_the_last_one_ended() -> None:
    async def scene() -> None:
        world = World()

        async def start(snapshot: str) -> Echo:
            if snapshot == "b":
                await asyncio.Event().wait()
            return await world.echo(snapshot)

        world.start = start
        async with followed(world) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("b is wanted"))
            world.started[0].dead = True
            await until(lambda: world.heard("the server of a ended by itself"))
            world.wants = "a"
            await healthy(client)
            assert await ask(client) == "a"
        assert [one.snapshot for one in world.started] == ["a", "a"]

    asyncio.run(scene())


def test_a_server_that_ends_while_another_drains_is_replaced() -> None:
    """The alias moves a third time while a slow answer still runs on the first server."""

    async def scene() -> None:
        world = World()
        async with followed(world) as (client, _):
            await healthy(client)
            slow = asyncio.create_task(client.post("/v1/slow", json={}))
            await until(lambda: world.started[0].running == 1)
            world.wants = "b"
            await until(lambda: world.heard("serving b"))
            world.wants = "c"
            looks = world.looks
            world.started[1].dead = True
            await until(lambda: world.heard("serving c"))
            assert await ask(client) == "c"
            assert not slow.done() and world.looks > looks
            world.started[0].release.set()
            assert (await slow).headers[SNAPSHOT] == "a"
        assert [one.cut_at_stop for one in world.started] == [0] * 3

    asyncio.run(scene())


def test_at_most_two_servers_stand_at_once() -> None:
    async def scene() -> None:
        world = World()
        async with followed(world) as (client, _):
            await healthy(client)
            slow = asyncio.create_task(client.post("/v1/slow", json={}))
            await until(lambda: world.started[0].running == 1)
            world.wants = "b"
            await until(lambda: world.heard("serving b"))
            world.wants = "c"
            await asyncio.sleep(0.1)
            assert len(world.started) == 2
            world.started[0].release.set()
            assert (await slow).status_code == 200
            await until(lambda: world.heard("serving c"))

    asyncio.run(scene())


@pytest.mark.parametrize("swap", ["overlap", "restart"])
def test_one_start_that_fails_does_not_end_the_service(swap: str) -> None:
    """Neither after a server ended by itself, nor where nothing is left of the one before the swap."""

    async def scene() -> None:
        world, fails = World(), ["a"]

        async def start(snapshot: str) -> Echo:
            if len(world.started) == 1 and fails:
                raise RunError(f"no memory for {fails.pop()}")
            return await world.echo(snapshot)

        world.start = start
        async with followed(world, swap=swap) as (client, following):
            await healthy(client)
            if swap == "overlap":
                world.started[0].dead = True
            else:
                fails.append("b")
                world.wants = "b"
            await until(lambda: len(world.started) == 2 and world.started[0].stopped)
            await healthy(client)
            assert await ask(client) == "a" and not following.done()
            assert world.heard("did not come up: no memory for a")

    asyncio.run(scene())


def test_what_is_started_again_is_what_is_wanted_by_then() -> None:
    async def scene() -> None:
        world = World(wants="b")

        async def start(snapshot: str) -> Echo:
            if snapshot == "b" and world.started:
                world.wants = "a"
                raise RunError("no memory")
            return await world.echo(snapshot)

        world.start = start
        async with followed(world, max_restarts=2) as (client, _):
            await healthy(client)
            world.started[0].dead = True
            await until(lambda: world.heard("serving a"))
            assert await ask(client) == "a"

    asyncio.run(scene())


def test_a_new_snapshot_that_does_not_come_up_gives_way_to_the_one_that_ran() -> None:
    """The alias names a bad snapshot, and the server of the good one ends."""

    async def scene() -> None:
        world = World()
        world.start = failing(world, "b")
        async with followed(world, again_s=1e6) as (client, _):
            await healthy(client)
            world.wants = "b"
            await until(lambda: world.heard("b did not come up"))
            world.started[0].dead = True
            await until(lambda: len(world.started) == 2)
            await healthy(client)
            assert await ask(client) == "a"
            assert world.said.count("tried b") == 1

    asyncio.run(scene())


def test_starts_that_keep_failing_end_the_follower() -> None:
    async def scene() -> None:
        world, tried = World(), []

        async def start(snapshot: str) -> Echo:
            tried.append(snapshot)
            if len(tried) > 1:
                raise RunError("no memory")
            return await world.echo(snapshot)

        world.start = start
        async with followed(world, max_restarts=2) as (client, following):
            await healthy(client)
            world.started[0].dead = True
            with pytest.raises(RunError, match="3 servers in a row ended") as caught:
                await following
            assert (await client.get("/health")).status_code == 503
        assert len(tried) == 3
        assert "no memory" in str(caught.value.cause)

    asyncio.run(scene())
