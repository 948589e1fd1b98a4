"""Manifest of a snapshot: its files by hash, and where it came from.

The bytes are canonical (sorted keys, two spaces, one newline at the end), because their sha256 is
the snapshot's id. Times, absolute paths and secrets are refused, not stripped: an id that depended
on the machine could not be reproduced, and a snapshot is made to be handed on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal, get_args

from align.errors import SnapshotError, UserError
from rollouts.types import SnapshotId

SnapshotKind = Literal["model", "adapter", "bank", "reward"]
"""Full weights, a peft adapter over a base, a bank of adapters over one, or a model that scores answers and
is never production."""

MANIFEST = "manifest.json"
HELD_OUT = "held_out"
"""Key of a base's provenance: what its store holds out of texts; absent: windows, see `heldout_of`."""
SCHEMA_VERSION = 1

_SECRET_KEY = re.compile(r"(^|[_-])(token|secret|password|passwd|api_?key|credentials?)$", re.I)
_SECRET_ENV = re.compile(r"TOKEN|SECRET|PASSWORD|KEY", re.I)
_SHORTEST_SECRET = 8
"""Shorter values of secret-looking variables (``1``, ``true``) occur everywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Origin of a snapshot. Everything in it must be the same on every machine."""

    kind: SnapshotKind
    parent: SnapshotId | None = None
    """The snapshot its round started from; None for a base."""
    base: str | None = None
    """Model that training began with: a model id with its revision, or a snapshot id."""
    round: str | None = None
    """Name of the round that made it; None for a base."""
    config_hash: str | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    data_hashes: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each prompt source, by name."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of Keel's code and of the packages that decide the result."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(SnapshotKind):
            raise ValueError(
                f"kind is {' or '.join(map(repr, get_args(SnapshotKind)))}, got {self.kind!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a snapshot."""

    path: str
    """Relative to the snapshot, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, path: str, size: int, sha256: str) -> FileEntry:
        """Make an entry whose path stays inside the snapshot on every system."""
        parts = PurePosixPath(path).parts
        inside = bool(parts) and not PurePosixPath(path).is_absolute() and ".." not in parts
        if not inside or "\\" in path or PureWindowsPath(path).drive or not path.isprintable():
            raise SnapshotError(f"{path!r} is no path inside a snapshot", where=MANIFEST)
        return cls(path=path, size=size, sha256=sha256)

    def differs(self, size: int, sha256: str) -> str | None:
        """Say how a file of this size and hash differs, as the end of a sentence; return None if it
        does not."""
        if size != self.size:
            return f"has {size} bytes, not {self.size}"
        return None if sha256 == self.sha256 else "has changed since it was published"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of manifest.json."""

    provenance: Provenance
    files: tuple[FileEntry, ...]
    """Sorted by path."""

    @property
    def blob_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        """Encode the manifest as the bytes whose sha256 is the snapshot's id."""
        provenance = asdict(self.provenance)
        content = {
            "schema_version": SCHEMA_VERSION,
            "kind": provenance.pop("kind"),
            "provenance": provenance,
            "files": [asdict(entry) for entry in self.files],
        }
        text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False)
        return text.encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> Manifest:
        """Read a manifest of this or an earlier version; ``where`` names the file in errors."""
        try:
            data = json.loads(content)
            if data["schema_version"] > SCHEMA_VERSION:
                raise SnapshotError(
                    f"manifest version {data['schema_version']} is newer than {SCHEMA_VERSION}",
                    where=where,
                    cause="a newer Keel published it",
                    remedy="update Keel",
                )
            known = {f.name for f in fields(Provenance)}
            provenance = {k: v for k, v in data["provenance"].items() if k in known}
            return cls(
                provenance=Provenance(kind=data["kind"], **provenance),
                files=tuple(FileEntry.of(f["path"], f["size"], f["sha256"]) for f in data["files"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SnapshotError(f"this is no manifest ({error!r})", where=where) from error


def refuse_leaks(provenance: Provenance) -> None:
    """Raise UserError for what ties a snapshot to one machine, or gives a secret away."""
    secret_values = (value for key, value in os.environ.items() if _SECRET_ENV.search(key))
    secrets = [value for value in secret_values if len(value) >= _SHORTEST_SECRET]
    for key, value in _leaves(asdict(provenance), "provenance"):
        if not isinstance(value, str):
            continue
        if _SECRET_KEY.search(key.rpartition(".")[2]) or any(secret in value for secret in secrets):
            what = "this looks like a secret; a snapshot carries none"
            raise UserError(what, where=key, remedy="leave it out")
        if value.startswith(("/", "~", "file://")) or PureWindowsPath(value).is_absolute():
            raise UserError(
                f"{value!r} is a path of this machine; a snapshot carries none",
                where=key,
                remedy="give a name or a content hash",
            )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar below ``value`` with its dotted key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{index}")
    else:
        yield key, value
