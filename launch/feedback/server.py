"""The process that takes feedback: its socket, its token, and an end that loses nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from align.config.campaign import CampaignConfig
from align.schedule.inbox.drop import make_drop
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import stream_forms
from align.store.paths import StorePaths
from align.store.store import open_ledger
from launch.connections import ConnectionLimits, server_config
from launch.feedback.token import read_token
from launch.listening import listen
from rollouts.errors import UserError

GRACE_S = 30
"""Seconds that requests under way have to end when the server is asked to."""
LIMITS = ConnectionLimits(total=512, per_client=256)


def serve(
    config: CampaignConfig,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    say: Callable[[str], None],
) -> None:
    """Take feedback until SIGTERM or SIGINT; what was received by then is stored and answered.

    Raises:
        UserError: no round reads a stream, the address cannot be used, or the extra is missing.
    """
    try:
        import uvicorn

        from launch.feedback.app import make_app
    except ImportError as error:
        raise UserError(
            f"the server needs {error.name}", remedy="pip install 'keel-align[serve]'"
        ) from error
    forms = stream_forms(config)
    if not forms:
        raise UserError(
            "no round reads feedback",
            where="rounds",
            remedy="set data of a round to {source: inbox://NAME}",
        )
    paths = StorePaths(config.folder).inbox
    folder, token_file = paths.folder, token_file or paths.token
    token = read_token(token_file, option="--token-file")
    inbox = Inbox(open_ledger(config).database)
    make_drop(folder, forms)
    with listen(host, port) as listening:
        address, bound = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        say(f"streams {', '.join(forms)}; the token is in {token_file}")
        if not (address.startswith("127.") or address == "::1"):
            say("warning: not only this machine can reach it, and the token travels unencrypted;")
            say("         put a proxy with TLS in front")
        say(f"listening on http://{shown}:{bound}")
        app = make_app(inbox, forms, token, folder=folder)
        settings = server_config(app, LIMITS, timeout_graceful_shutdown=GRACE_S)
        server = uvicorn.Server(settings)
        # uvicorn raises the signal that ended it once more, for whoever handled it before: that is itself.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, server.handle_exit)
        server.run(sockets=[listening])
    say("stopped; everything that was received is stored")
