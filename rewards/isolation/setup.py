"""How one worker process is set up: the words its owner, its keeper and the worker share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Provider = Literal["namespaces", "bwrap"]
"""What makes a sandbox: user namespaces set up by Keel, or the program of that name."""

SETUP_FAILED = 70
"""Exit code of a worker that could not be confined (EX_SOFTWARE of sysexits.h)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Everything a keeper needs to know before it forks its worker."""

    channel: int
    """File descriptor of the worker's socket to the owner."""
    control: int
    """File descriptor of the keeper's own."""
    owner: int
    """Process id of the owner."""
    scratch: str
    """The worker's only folder of its own."""
    folder: str
    """Where the reward's name is resolved: the owner's current folder."""
    memory_bytes: int | None
    """Address space; None: no limit."""
    provider: Provider | None = None
    """None: a process without a sandbox."""
    visible: tuple[str, ...] = ()
    """Files and folders a sandbox may read."""

    def dump(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Setup:
        """The other side of `dump`."""
        fields = json.loads(text)
        return cls(**{**fields, "visible": tuple(fields["visible"])})
