"""What passes the proxy and what does not, and what it does when one side goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from launch.feedback.body import BodyLimits
from launch.serving.proxy import LIMITS
from launch.serving.route import Route
from launch.serving.vllm_server import free_port
from tests.unit.backends import KEY, Echo, proxied, until


@asynccontextmanager
async def one_backend(
    limits: BodyLimits = LIMITS,
) -> AsyncIterator[tuple[httpx.AsyncClient, Echo, Route]]:
    backend, route = await Echo("a").start(), Route()
    route.switch(backend)
    try:
        async with proxied(route, limits=limits) as client:
            yield client, backend, route
    finally:
        await backend.stop()


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer sk-a"])
def test_without_the_key_nothing_gets_through(header: str | None) -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, _):
            headers = {} if header is None else {"Authorization": header}
            client.headers.pop("Authorization")
            for path in ("/v1/completions", "/metrics", "/invocations"):
                answer = await client.post(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["type"] == "invalid_request_error"
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert backend.asked == []

    asyncio.run(scene())


@pytest.mark.parametrize(
    "path",
    [
        "/", "/invocations", "/inference/v1/generate", "/scale_elastic_ep", "/docs", "/v1",
        "/v1/../invocations", "/v1/%2e%2e/invocations", "/v1/./models", "//v1/models", "/v1//models",
        "/metrics/../sleep",
    ],
)  # fmt: skip
def test_only_listed_paths_pass(path: str) -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, _):
            status = await raw_status(client, path)
            assert (status, backend.asked) == (404, [])
            assert await raw_status(client, "/v1/models?a=%2F&b=1") == 200
            assert backend.asked[0][0] == "/v1/models"

    asyncio.run(scene())


@pytest.mark.parametrize("host", ["x/v1/models?", "x/health?", "x/v1/models#", "x/v1/", "@"])
def test_a_path_in_the_host_header_is_none(host: str) -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, _):
            assert await raw_status(client, "/invocations", host=host) in (400, 404)
            assert backend.asked == []

    asyncio.run(scene())


async def raw_status(client: httpx.AsyncClient, path: str, more: str = "", host: str = "x") -> int:
    """Of a request without a body. A client library would tidy the path up, and send what it announced."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n{more}\r\n".encode()
    )
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


def test_the_backend_gets_its_own_key_and_headers_end_where_they_should() -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, _):
            hop = {"Connection": "x-mine", "X-Mine": "1", "X-Kept": "2", "TE": "trailers"}
            answer = await client.post("/v1/completions", json={}, headers=hop)
            (_, sent) = backend.asked[0]
            assert sent["authorization"] == f"Bearer {backend.key}"
            assert sent["x-kept"] == "2"
            assert not {"x-mine", "te"} & sent.keys()
            assert KEY not in str(sent)
            assert answer.headers["x-keel-snapshot"] == "a"
            assert "x-hop" not in answer.headers

    asyncio.run(scene())


def test_a_stream_is_not_held_back() -> None:
    """Each part arrives before the next one exists."""

    async def scene() -> None:
        async with (
            one_backend() as (client, backend, _),
            client.stream("POST", "/v1/stream") as stream,
        ):
            parts = stream.aiter_raw()
            assert await anext(parts) == b"data: 0 a\n\n"
            backend.release.set()
            assert b"".join([part async for part in parts]) == b"data: 1 a\n\ndata: 2 a\n\n"
            assert stream.headers["content-type"] == "text/event-stream"

    asyncio.run(scene())


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/slow"])
def test_a_client_that_leaves_stops_the_backend_too(path: str) -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, route):
            asking = asyncio.create_task(client.post(path, json={}))
            await until(lambda: backend.running == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: backend.left == [path])
            assert await route.drained(backend, 10.0) == 0

    asyncio.run(scene())


class Elsewhere:
    """A backend at some address."""

    snapshot, key = "elsewhere", "sk-elsewhere"

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def alive(self) -> bool:
        return True

    async def stop(self) -> None:
        return


def test_a_refused_connection_is_tried_again_where_requests_go_by_then() -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, route):
            route.switch(Elsewhere(free_port()))
            asking = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
            await asyncio.sleep(0.05)
            route.switch(backend)
            answer = await asking
            assert (answer.status_code, answer.json()) == (200, {"model": "a"})
            route.switch(Elsewhere(free_port()))
            answer = await client.post("/v1/completions", json={})
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0

    asyncio.run(scene())


def test_what_was_sent_is_never_sent_twice() -> None:
    """The backend dies with the request in its hands: nobody knows what it has done."""

    async def scene() -> None:
        got = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.readuntil(b"{}"))
            writer.close()

        async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
            route = Route()
            route.switch(Elsewhere(server.sockets[0].getsockname()[1]))
            async with proxied(route) as client:
                answer = await client.post("/v1/completions", json={})
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "server_error"
        assert len(got) == 1

    asyncio.run(scene())


def test_half_an_answer_is_not_taken_for_a_whole_one() -> None:
    async def scene() -> None:
        async with one_backend() as (client, _, __):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/v1/half", json={})

    asyncio.run(scene())


def test_a_body_has_a_limit_and_a_deadline() -> None:
    async def scene() -> None:
        limits = BodyLimits(body_bytes=1000, body_s=0.2)
        async with one_backend(limits) as (client, backend, _):
            assert (await client.post("/v1/completions", content=b"x" * 1000)).status_code == 200
            assert (await client.post("/v1/completions", content=b"x" * 1001)).status_code == 413

            assert await raw_status(client, "/v1/x", "Content-Length: 5\r\n") == 408
            assert len(backend.asked) == 1

    asyncio.run(scene())


def test_all_bodies_together_have_a_limit() -> None:
    """What is held until its request is answered counts; the place of what was answered is free again."""

    async def scene() -> None:
        limits = BodyLimits(body_bytes=1000, held_bytes=1500)
        async with one_backend(limits) as (client, backend, _):
            slow = asyncio.create_task(client.post("/v1/slow", content=b"x" * 1000))
            await until(lambda: backend.running == 1)
            answer = await client.post("/v1/completions", content=b"x" * 501)
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["type"] == "server_error"
            assert (await client.post("/v1/completions", content=b"x" * 500)).status_code == 200
            backend.release.set()
            assert (await slow).status_code == 200
            assert (await client.post("/v1/completions", content=b"x" * 501)).status_code == 200
            assert len(backend.asked) == 3

    asyncio.run(scene())


def test_health_is_that_of_the_process_behind_it() -> None:
    async def scene() -> None:
        async with one_backend() as (client, backend, _):
            assert (await client.get("/health")).status_code == 200
            backend.dead = True
            assert (await client.get("/health")).status_code == 503

    asyncio.run(scene())


def test_nothing_serves_before_the_first_switch() -> None:
    async def scene() -> None:
        async with proxied(Route()) as client:
            for path in ("/health", "/v1/models"):
                answer = await client.get(path)
                assert answer.status_code == 503
                assert answer.json()["error"]["type"] == "server_error"

    asyncio.run(scene())
