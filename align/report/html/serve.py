"""The report of a campaign that runs, on this machine only, made again when a browser asks for it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from align.config.campaign import CampaignConfig
from align.gate.evidence import stored_evidence
from align.report.html.page import render
from align.store.paths import StorePaths
from rollouts.errors import KeelError, UserError

LOOPBACK = "127.0.0.1"
DEADLINE_S = 10.0
"""Seconds for a browser to send its request, and to take the answer."""
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and mtime in ns of what a page is made of, but for files that never change."""


class LivePage:
    """The page of a store; made again only when the store has changed, where its files tell."""

    def __init__(self, config: CampaignConfig, refresh_s: int) -> None:
        self._config, self._refresh_s = config, refresh_s
        self._made: tuple[Stamp, str] | None = None
        self._lock = Lock()

    def __call__(self) -> str:
        with self._lock:  # Charts are drawn with settings that all threads share.
            stamp = tuple(map(_stamp, StorePaths(self._config.folder).changing()))
            # A ledger elsewhere leaves no trace here when it changes.
            if self._made is None or self._made[0] != stamp or self._config.ledger:
                page = render(stored_evidence(self._config), refresh_s=self._refresh_s)
                self._made = (stamp, page)
            return self._made[1]


class Server(ThreadingHTTPServer):
    """One thread per connection: browsers open some that they never use. None outlives the command."""

    daemon_threads = True
    block_on_close = False


def server(page: Callable[[], str], port: int, refresh_s: int) -> HTTPServer:
    """Open a server on loopback; ``serve_forever`` runs it, ``server_port`` is where it listens.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = DEADLINE_S

        def do_GET(self) -> None:
            # A page elsewhere whose name was made to point here still sends its own name.
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost") or self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                body = page()
            except KeelError as error:
                body = _waiting(error, refresh_s)
            content = body.encode("utf-8", "replace")
            self.send_response(HTTPStatus.OK)
            for name, value in (HEADERS | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing of requests."""

    try:
        return Server((LOOPBACK, port), Handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be listened on ({error.strerror})",
            where="--port",
            remedy="name another one, or 0 for any",
        ) from error


def _waiting(error: KeelError, refresh_s: int) -> str:
    """Write the page that is shown while there is nothing to report, such as before the first round."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Keel report</title>'
        f'<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="refresh" content="{refresh_s}"><link rel="icon" href="data:,">'
        f"<h1>Nothing to report yet</h1><p>{escape(error.what)}</p></html>"
    )


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return str(path), 0, 0
    return str(path), stat.st_size, stat.st_mtime_ns
