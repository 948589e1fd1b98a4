"""Bodies of requests: each within its limits, and all that are held at once within theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from launch.feedback.body import BadRequest, BodyLimits


class Crowded(Exception):
    """The bodies of other requests fill the memory that is meant for them."""


class Receiver:
    """Reads bodies. Bytes count from their arrival until the request is answered."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, which counts as held until the block ends.

        Raises:
            BadRequest: it is too large, or does not arrive in time.
            Crowded: come back later.
        """
        limit = self._limits.body_bytes
        too_large = BadRequest(413, f"more than {limit} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise too_large
        body = bytearray()
        num_bytes = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    num_bytes += len(part)
                    self._held += len(part)
                    if num_bytes > limit:
                        raise too_large
                    if self._held > self._limits.held_bytes:
                        raise Crowded
                    body += part
        except TimeoutError as error:
            raise BadRequest(408, f"no body within {self._limits.body_s:g} s") from error
        else:
            yield bytes(body)
        finally:
            self._held -= num_bytes
