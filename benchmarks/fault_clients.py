"""Hostile clients of the two servers, over raw sockets: silent, slow, endless, compressed, ambiguous.

`FEEDBACK` and `SERVING` start the servers as processes of their own, the second one before a backend that
answers with what it was asked. An attack returns a sentence where it did harm, and None where it did not;
harm is that somebody with the token is not answered, that a second request is read out of one, or that a
refused sender does not see why.
"""

from __future__ import annotations

import json
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.fault_trial import FaultOutcome, FaultTrial

PATIENCE_S = 60.0
"""Seconds for a server to start, and for an answer to somebody with the token."""
HEADER_S = 1.0
"""Seconds that the servers of this file give a request's headers, so that nobody waits for long."""
SMUGGLED = b"GET /v1/models?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

LIMITS = f"""
import sys
from launch.connections import ConnectionLimits
if sys.argv[4] == "h11":
    import uvicorn.protocols.http.auto
    from uvicorn.protocols.http.h11_impl import H11Protocol
    uvicorn.protocols.http.auto.AutoHTTPProtocol = H11Protocol
limits = ConnectionLimits(total=int(sys.argv[2]), per_client=int(sys.argv[2]) // 2, header_s={HEADER_S})
"""
FEEDBACK = """
from pathlib import Path
from align.config.campaign import CampaignConfig
from launch.feedback import server
server.LIMITS = limits
config = CampaignConfig.model_validate_json(sys.argv[1])
say = lambda text: print(text, flush=True)
server.serve(config, host="127.0.0.1", port=0, token_file=Path(sys.argv[3]), say=say)
"""
SERVING = """
import asyncio, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from launch.listening import listen
from launch.serving import serve
from launch.serving.swapper import SwapPolicy
serve.LIMITS = limits

class Echo(BaseHTTPRequestHandler):
    def answer(self):
        print("asked", self.command, self.path, flush=True)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_GET = do_POST = answer
    def log_message(self, *_):
        pass

echo = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=echo.serve_forever, daemon=True).start()

class Backend:
    snapshot, key, url = "0" * 64, "inner", f"http://127.0.0.1:{echo.server_port}"
    def alive(self):
        return True
    async def stop(self):
        pass

async def start(snapshot):
    return Backend()

with listen("127.0.0.1", 0) as listening:
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    key = Path(sys.argv[3]).read_text()
    asyncio.run(serve.run(listening, wanted=lambda: "0" * 64, start=start, key=key,
                          pace=SwapPolicy(poll_s=60, drain_s=1), say=print))
"""
TOKEN = "a-token-of-this-benchmark"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A server that runs, and one request that it answers with 200."""

    port: int
    path: str
    body: bytes
    process: subprocess.Popen[str]
    printed: Path

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """Open a connection that says nothing yet."""
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE_S, (source, 0))

    def request(self, *headers: str, body: bytes | None = None, token: str = TOKEN) -> bytes:
        """Write a request with the token, by default with its length."""
        content = self.body if body is None else body
        lines = [f"POST {self.path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}"]
        lines += headers or [f"Content-Length: {len(content)}"]
        return "\r\n".join([*lines, "", ""]).encode() + content

    def status(self, request: bytes | None = None) -> int:
        """Send a request and return the status of its answer; 0 where there is none."""
        with self.connect() as connection:
            return statuses(connection, request or self.request(), first=True)[0]

    def serves(self) -> str | None:
        """Say that somebody with the token is not answered; None where they are."""
        try:
            status = self.status()
        except OSError as error:
            return f"somebody with the token is not answered ({error})"
        return None if status == 200 else f"somebody with the token is answered with {status}"


Attack = Callable[[Target, random.Random, int], str | None]
"""Attack on a server with a number of connections; a sentence where it did harm."""


@contextmanager
def running(
    kind: str, folder: Path, connections: int = 512, parser: str = "httptools"
) -> Iterator[Target]:
    """Start one of the two servers, as a process with so many places, and end it."""
    feeds = kind == "feedback"
    token, printed = folder / "token", folder / f"{kind}.out"
    token.write_text(TOKEN)
    token.chmod(0o600)
    pairs = {"name": "dpo", "pairs": "file"}
    fed = {"name": "fed", "algorithm": pairs, "data": "inbox://taste", "steps": 1}
    campaign = {
        "name": "fed",
        "policy": {"model": "demo://digits"},
        "store": str(folder / "store"),
        "rounds": [fed],
    }
    program = LIMITS + (FEEDBACK if feeds else SERVING)
    arguments = [json.dumps(campaign), str(connections), str(token), parser]
    with printed.open("w") as output, ExitStack() as undo:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=output, stderr=output, text=True
        )
        undo.callback(process.wait)
        undo.callback(process.kill)
        row = {"prompt": "Which?", "chosen": "this", "rejected": "that"}
        target = Target(
            port=port_of(printed, process),
            path="/v1/feedback" if feeds else "/v1/completions",
            body=json.dumps(row if feeds else {"prompt": "a"}).encode(),
            process=process,
            printed=printed,
        )
        until = time.monotonic() + PATIENCE_S
        while (harm := target.serves()) and time.monotonic() < until:
            time.sleep(0.05)
        assert harm is None, harm
        yield target


def port_of(printed: Path, process: subprocess.Popen[str]) -> int:
    """Wait until a server says where it listens."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        for line in printed.read_text().splitlines():
            if line.startswith("listening on "):
                return int(line.removesuffix("/v1").rpartition(":")[2])
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start: {printed.read_text()}")


def statuses(connection: socket.socket, request: bytes, *, first: bool = False) -> list[int]:
    """Send bytes and return the status of each answer, or of the first alone; [0] without any."""
    answers = b""
    with suppress(ConnectionError, TimeoutError):
        connection.sendall(request)
    with suppress(ConnectionError, TimeoutError):
        while b"\r\n\r\n" not in answers and (part := connection.recv(1 << 16)):
            answers += part
        connection.settimeout(0.1)
        while not first and (part := connection.recv(1 << 16)):
            answers += part
    lines = [line for line in answers.split(b"\r\n") if b"HTTP/1.1 " in line]
    return [int(line.partition(b"HTTP/1.1 ")[2][:3]) for line in lines] or [0]


def silent(target: Target, chance: random.Random, connections: int) -> str | None:
    """Take every place and a few more without a word; the ones that say a word are served."""
    with ExitStack() as stack:
        for _ in range(connections + chance.randrange(8, 64)):
            stack.enter_context(target.connect())
        return target.serves() or target.serves()


def slowloris(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send headers byte by byte on every place: they end in time, and others are served meanwhile."""
    with ExitStack() as stack:
        slow = [stack.enter_context(target.connect()) for _ in range(connections)]
        began, closed = time.monotonic(), 0
        request = b"POST / HTTP/1.1\r\nX-Slow: " + b"a" * 4096
        for index in range(int(HEADER_S * 2 * 4)):
            for connection in slow:
                with suppress(OSError):
                    connection.send(request[index : index + 1])
            if index == 4 and (harm := target.serves()):
                return harm
            time.sleep(max(0.0, began + (index + 1) / 4 - time.monotonic()))
        for connection in slow:
            closed += has_ended(connection)
        open_still = len(slow) - closed
        return f"{open_still} slow connections are still open" if open_still else target.serves()


def has_ended(connection: socket.socket) -> bool:
    """Tell if the server has closed a connection."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1 << 16) == b""
    except ConnectionError:
        return True


def large_bodies(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send more than is allowed, with and without a length: the sender sees 413 each time."""
    content = b"[" + b" " * (33 << 20)
    size = len(content)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (size, content)
    requests = {
        "with a length": (413, target.request(body=content)),
        "in chunks": (413, target.request("Transfer-Encoding: chunked", body=chunked)),
        "without the token": (401, target.request(body=content, token="wrong")),
    }
    for name, (expected, request) in requests.items():
        for _ in range(connections):
            if (status := target.status(request)) != expected:
                return f"a large body {name} is answered with {status}, not {expected}"
    return target.serves()


def endless_headers(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send headers without an end: the connection closes after a few kilobytes."""
    for _ in range(connections):
        with target.connect() as connection:
            sent, ended = connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n"), False
            with suppress(ConnectionError, TimeoutError):
                while not ended and sent < 64 << 20:
                    sent += connection.send(b"X-%d: %s\r\n" % (sent, b"a" * 1000))
                    ended = has_ended(connection)
        if sent >= 64 << 20:
            return f"{sent >> 20} MiB of headers were taken"
    return target.serves()


def gzip_bomb(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send a gigabyte in a megabyte, compressed as every name of a coding says: all are refused."""
    import gzip

    content = gzip.compress(b"[" + b" " * (64 << 20))
    for coding in ("gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip"):
        length = f"Content-Length: {len(content)}"
        status = target.status(target.request(length, f"Content-Encoding: {coding}", body=content))
        if status != 415:
            return f"a body in {coding} is answered with {status}, not 415"
    return target.serves()


def ambiguous(target: Target) -> Mapping[str, bytes]:
    """Write requests whose end depends on who reads them, by name; a second request hides in each."""
    hidden, inner = SMUGGLED, target.body
    size, total = len(inner), len(inner) + len(hidden)
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (size, inner)
    ask, both = target.request, f"Content-Length: {total}"
    return {
        "CL.TE": ask(both, "Transfer-Encoding: chunked", body=chunk + hidden),
        "TE.CL": ask("Transfer-Encoding: chunked", "Content-Length: 4", body=chunk + hidden),
        "CL.CL": ask(f"Content-Length: {size}", both, body=inner + hidden),
        "CL list": ask(f"Content-Length: {size}, {total}", body=inner + hidden),
        "CL plus": ask(f"Content-Length: +{size}", body=inner + hidden),
        "CL minus": ask("Content-Length: -1", body=inner + hidden),
        "CL hex": ask(f"Content-Length: {size:#x}", body=inner + hidden),
        "TE.TE": ask("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=chunk + hidden),
        "TE xchunked": ask("Transfer-Encoding: xchunked", body=chunk + hidden),
        "TE space": ask("Transfer-Encoding : chunked", both, body=chunk + hidden),
        "TE tab": ask("Transfer-Encoding:\tchunked", both, body=chunk + hidden),
        "TE gzip": ask("Transfer-Encoding: gzip, chunked", body=chunk + hidden),
        "obs-fold CL": ask("Content-Length:", f" {size}", both, body=inner + hidden),
        "obs-fold TE": ask("Transfer-Encoding:", " chunked", both, body=chunk + hidden),
        "bare LF": ask("X: y\nTransfer-Encoding: chunked", both, body=chunk + hidden),
        "bare CR": ask("X: y\rTransfer-Encoding: chunked", both, body=chunk + hidden),
        "NUL": ask("X: y\0", "Transfer-Encoding: chunked", both, body=chunk + hidden),
        "two hosts": ask("Host: y", f"Content-Length: {size}", body=inner),
        "chunk size": ask("Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n" + hidden),
        "chunk minus": ask("Transfer-Encoding: chunked", body=b"-1\r\nhello\r\n0\r\n\r\n" + hidden),
        "chunk overflow": ask("Transfer-Encoding: chunked", body=b"f" * 21 + b"\r\nhello" + hidden),
    }  # fmt: skip


def smuggling(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send every ambiguous request: one refusal each, and the request within is never read."""
    for name, request in ambiguous(target).items():
        with target.connect() as connection:
            answers = statuses(connection, request)
        if len(answers) > 1 or answers[0] == 200:
            return f"{name} is answered with {answers}"
    if "smuggled" in target.printed.read_text():
        return "a request within another one was read"
    return target.serves()


def noise(target: Target, chance: random.Random, connections: int) -> str | None:
    """Send a request with bytes changed, cut and doubled at random, on many connections."""
    for _ in range(connections):
        request = bytearray(target.request())
        for _ in range(chance.randrange(1, 8)):
            start = chance.randrange(len(request))
            others: list[bytes] = [b"", b"\r\n", b"\0", chance.randbytes(1), bytes(request[:40])]
            piece = chance.choice(others)
            request[start : start + chance.randrange(0, 4)] = piece
        with target.connect() as connection, suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
    return target.serves()


def senders_beside(target: Target, chance: random.Random, connections: int) -> str | None:
    """Open and drop connections without a break while somebody elsewhere with the token sends."""
    over = threading.Event()

    def flood() -> None:
        opened: list[socket.socket] = []
        while not over.is_set():
            with suppress(OSError):
                opened.append(target.connect("127.0.0.2"))
            if len(opened) > connections:
                opened.pop(0).close()
        for connection in opened:
            connection.close()

    floods: Sequence[threading.Thread] = [threading.Thread(target=flood) for _ in range(2)]
    for thread in floods:
        thread.start()
    try:
        harms = [target.serves() for _ in range(max(3, connections // 16))]
    finally:
        over.set()
        for thread in floods:
            thread.join()
    return next((harm for harm in harms if harm), None)


ATTACKS: Mapping[str, Attack] = {
    "silent connections": silent,
    "slow headers": slowloris,
    "large bodies": large_bodies,
    "endless headers": endless_headers,
    "compressed bodies": gzip_bomb,
    "requests within requests": smuggling,
    "noise": noise,
    "a flood of connections": senders_beside,
}


def attacked(name: str, kind: str, seed: int, folder: Path) -> FaultOutcome:
    """Attack one server, which is read by one of uvicorn's two parsers in turn."""
    parser, few = ("httptools", "h11")[seed % 2], name in ONCE
    with running(kind, folder, PLACES, parser) as target:
        connections = 1 if few else PLACES
        harm = ATTACKS[name](target, random.Random(seed), connections)
        if harm is None and "Traceback" in target.printed.read_text():
            harm = "the server logged an exception"
    if harm is not None:
        return FaultOutcome.lost(f"{kind}, {parser}: {harm}")
    return FaultOutcome.kept(f"{kind}, {parser}: whoever has the token was answered")


PLACES = 512
"""Connections that the servers of the benchmark take, and connections of most attacks."""
ONCE = ("large bodies", "endless headers", "compressed bodies", "requests within requests")
"""Attacks whose requests are sent one after the other."""
TRIALS: Mapping[str, FaultTrial] = {
    f"{kind}-{name.replace(' ', '-')}": FaultTrial(
        tried=f"{' '.join(str(attack.__doc__).split())} The server is that of {command}.",
        tries=4,
        run=partial(attacked, name, kind),
    )
    for kind, command in (("feedback", "`keel feedback serve`"), ("serving", "`keel serve`"))
    for name, attack in ATTACKS.items()
}
