"""Signals that end a run in order, and the record of which one did.

SIGTERM raises KeyboardInterrupt within a run and not SystemExit: of the two, Ray's compiled code hands only
that one on, and makes an error of its own of the other.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rollouts.errors import RunError

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM ended, as shells have it."""
_received: list[signal.Signals] = []
"""Signal that stopped the innermost block of `ended_by_sigterm`; empty if none did."""
_errors: list[RunError] = []
"""Error for which `end_run` stops that block; empty if it does not."""


@contextmanager
def ended_by_sigterm() -> Iterator[Callable[[], None]]:
    """Make SIGTERM end the block in order, by SystemExit; off the main thread, do nothing.

    `end_run` ends it by an error.

    Yields a function that sees to it once more, after a library has set a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)
    _received.clear()
    _errors.clear()
    _install()
    try:
        yield _install
    except KeyboardInterrupt:
        if _errors:
            raise _errors[0] from None
        if _received:
            raise SystemExit(TERMINATED) from None
        raise
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:  # By the handler that Ray has while it starts.
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def end_run(error: RunError) -> bool:
    """End the block of `ended_by_sigterm` by an error, from any thread; return False if there is none."""
    if signal.getsignal(signal.SIGTERM) is not _stop:
        return False
    _errors[:] = [error]
    os.kill(os.getpid(), signal.SIGTERM)
    return True


def signal_of(error: BaseException) -> str | None:
    """Return the name of the signal by which a run is ending; None if it ends by something else."""
    match error:
        case SystemExit(code=int(code)) if code - 128 in set(signal.Signals):
            return signal.Signals(code - 128).name
        case KeyboardInterrupt() if not str(error):
            return _received[0].name if _received else signal.SIGINT.name
    return None


def _install() -> None:
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _frame: object) -> None:
    if _errors:
        raise KeyboardInterrupt(str(_errors[0]))
    _received[:] = [signal.Signals(number)]
    raise KeyboardInterrupt
