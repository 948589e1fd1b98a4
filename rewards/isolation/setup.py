"""Set-up of one worker process: the fields that its owner, its keeper and the worker share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Provider = Literal["namespaces", "bwrap"]
"""Maker of a sandbox: user namespaces set up by Keel, or the program of that name."""

SETUP_FAILED = 70
"""Exit code of a worker that could not be confined (EX_SOFTWARE of sysexits.h)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Facts that a keeper needs before it forks its worker."""

    channel: int
    """File descriptor of the worker's socket to the owner."""
    control: int
    """File descriptor of the keeper's own socket."""
    owner: int
    """Process id of the owner."""
    scratch: str
    """The worker's only folder of its own."""
    folder: str
    """Folder where the reward's name is resolved: the owner's current folder."""
    memory_bytes: int | None
    """Address space; None: no limit."""
    provider: Provider | None = None
    """Maker of the sandbox; None: a process without one."""
    visible: tuple[str, ...] = ()
    """Files and folders a sandbox may read."""
    user: tuple[int, int] | None = None
    """Ids of the user and the group that a worker without a sandbox becomes; None: it stays this one."""
    temporary: str | None = None
    """Folder of code that ends with the worker; None: there is none."""

    def dump(self) -> str:
        """Encode the set-up as one word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Setup:
        """Decode what `dump` made."""
        fields = json.loads(text)
        user = None if fields["user"] is None else tuple(fields["user"])
        return cls(**{**fields, "visible": tuple(fields["visible"]), "user": user})
