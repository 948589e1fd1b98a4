"""Log lines without secrets, and without characters that a terminal obeys."""

from __future__ import annotations

import logging
import os
from typing import Any


def mask_logs() -> None:
    """Mask the message of every log record of this process, whichever library writes it."""
    make = logging.getLogRecordFactory()

    def masking(*args: Any, **kwargs: Any) -> logging.LogRecord:
        from align.report.printable import printable
        from rollouts.machine.variables import masked

        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except Exception:  # The handler reports a message that does not fit its arguments.
            return record
        safe = printable(masked(message, os.environ))
        if safe != message:
            record.msg, record.args = safe, None
        return record

    logging.setLogRecordFactory(masking)
