"""Work of a server beside its requests: taking dropped files and forgetting old requests."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from align.schedule.inbox.drop import sweep
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import StreamForm

SWEEP_S = 5.0
FORGET_S = 3600.0


class Sweeper:
    """Repeated passes over the drop folder. One that fails is reported, and the next one tried."""

    def __init__(self, folder: Path, inbox: Inbox, forms: Mapping[str, StreamForm]) -> None:
        self._folder, self._inbox, self._forms = folder, inbox, forms
        self._forget_at = 0.0
        self.failing = False
        """True if the last pass failed."""

    async def run(self) -> None:
        """Pass over the folder until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.sweep_once)
                self.failing = False
            except Exception as error:  # Files wait here, and nobody else would report it.
                self.failing = True
                print(f"drop folder: {type(error).__name__}: {error}", file=sys.stderr)
            await asyncio.sleep(SWEEP_S)

    def sweep_once(self) -> None:
        """Take what lies in the folder, once."""
        for intake in sweep(self._folder, self._inbox, self._forms):
            if intake.error is not None:
                print(f"drop folder: {intake.file}: {intake.error}", file=sys.stderr)
        if time.monotonic() >= self._forget_at:
            self._inbox.forget_requests()
            self._forget_at = time.monotonic() + FORGET_S
