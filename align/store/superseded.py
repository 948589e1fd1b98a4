"""Files of a store that the ledger no longer names: nobody fetches them, and the next run removes them.

A file is removed after the ledger's newer entry is durable, so a crash leaves both. A file counts as
superseded only if the ledger names what has replaced it, or says that its round or attempt is over.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from align.store.ledger.ledger import Ledger

RESULTS = re.compile(r"(evaluations/[0-9a-f]+/[^/]+-[0-9a-f]{8})(?:-\d+)?\.parquet")
"""Results on a suite. The group is what all looks at the suite have in common."""
CHECKPOINTS = re.compile(r"rounds/(\d+)-([^/]+)/checkpoint[^/]*/.+")
"""Files of checkpoints. The groups are the round's index and name."""
ARTIFACTS = re.compile(r"rounds/(\d+)-[^/]+/attempt-(\d+)/artifacts/.+")
"""Tensors that retention methods hand on. The groups are the round's index and the attempt."""


def superseded_in(ledger: Ledger) -> Callable[[str], bool]:
    """Return a test of paths, relative to the store: True for a file that the ledger no longer names.

    Superseded are results that a record with more items has replaced, checkpoints of a round that is over
    or has left its place in the ledger, and what retention kept of an attempt that was not accepted.
    """
    results = {record.path for record in ledger.evaluations()}
    looks = {match[1] for path in results if (match := RESULTS.fullmatch(path))}
    attempts = {(record.index, record.attempt): record for record in ledger.attempts()}
    latest = {index: record for (index, _), record in attempts.items()}

    def is_superseded(path: str) -> bool:
        if match := RESULTS.fullmatch(path):
            return match[1] in looks and path not in results
        if match := CHECKPOINTS.fullmatch(path):
            record = latest.get(int(match[1]))
            return record is not None and (record.closed or record.name != match[2])
        if match := ARTIFACTS.fullmatch(path):
            record = attempts.get((int(match[1]), int(match[2])))
            return record is not None and record.state != "accepted" and not record.live
        return False

    return is_superseded
