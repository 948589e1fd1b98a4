"""The error tree of campaigns. Raise the narrowest that fits; say what, where, cause and remedy.

    KeelError                   rollouts.errors: described for the person who has to act on it
    ├── UserError               the input is wrong; exits 2, no traceback
    │   ├── StoreError          the store belongs to another campaign, config or version of Keel
    │   │   ├── StoreBusy       another live process runs this store
    │   │   └── LedgerLost      the ledger is gone or damaged, and the rest of the store is not
    │   └── ArtifactError       what a round to come rests on was changed or is gone, before anything began
    └── RunError                the input was fine and something failed on the way; exits 1
        ├── EvidenceError       a stored file is not the one that was written, or is gone; names it; exits 2
        ├── SnapshotError       a snapshot is corrupt, incomplete or missing; names the file; exits 2
        ├── StaleAttempt        another runner took over this round; this one must stop
        ├── ParityError         engine and learner disagree about the same weights
        └── NonFiniteError      NaN or infinity where a number has to be

A rejected round is a result, not an error: the verdict says so. Illegal calls, such as accepting a
round that never entered the gate, are defects and raise ValueError.
"""

from __future__ import annotations

from rollouts.errors import KeelError, RunError, UserError

__all__ = [
    "ArtifactError",
    "EvidenceError",
    "KeelError",
    "LedgerLost",
    "NonFiniteError",
    "ParityError",
    "RunError",
    "SnapshotError",
    "StaleAttempt",
    "StoreBusy",
    "StoreError",
    "UserError",
]


class StoreError(UserError):
    """The store cannot serve this campaign: nothing in it was changed."""


class StoreBusy(StoreError):
    """Another live process holds the store."""


class LedgerLost(StoreError):
    """The ledger is missing, empty or damaged, and the store has more than that; nothing was written."""


class EvidenceError(RunError):
    """A stored file that a verdict or a round rests on was changed or is gone. ``where`` names it."""

    exit_code = UserError.exit_code


class ArtifactError(UserError, EvidenceError):
    """An artifact that a round to come goes on from was changed or is gone; nothing was started."""


class SnapshotError(RunError):
    """A snapshot that must not be loaded, or could not be published. ``where`` names the file."""

    exit_code = UserError.exit_code


class MissingSnapshot(SnapshotError):
    """A snapshot whose folder is not in the store."""


class StaleAttempt(RunError):
    """A write by a runner that has been replaced. Nothing was written."""


class ParityError(RunError):
    """The engine's logprobs differ from the learner's by more than the tolerance."""


class NonFiniteError(RunError):
    """A loss, gradient, KL or reward is not a finite number. No step was taken with it."""
