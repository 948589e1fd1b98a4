"""Names of all files and folders of a store; no other room spells them.

ledger.db
snapshots/<id>/             packed/<id>/                staging/<uuid>/
rounds/<index>-<name>/      attempts and checkpoints, see `align.store.run_folder`
replay/<snapshot>.jsonl     replay/examples-<snapshot>.jsonl   replay/history-<snapshot>.jsonl
replay/answers-<hash>.jsonl    replay/synthetic-<hash>.jsonl
evaluations/<snapshot>/<suite>-<hash>.parquet   evaluations/<snapshot>/aa/
evaluations/answers/        evaluations/references/     evaluations/overlap.json
inbox/drop/<stream>/        inbox/done/                 inbox/failed/
serving/
ledger-backups/<number>.db  see `align.store.backups`
restored-<number>/          what a restored ledger does not know
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.config.store import LEDGER
from align.errors import StoreError
from align.store.run_folder import METRICS, STAGING, RoundFolder, RunFolder
from rollouts.types import SnapshotId

DIGITS = 16
"""Number of digits of a snapshot's id that stand in the names of its files."""
MIRRORED = ("evaluations", "replay", "rounds")
"""Folders that a store with a URL keeps there too; the rest belongs to one machine, or is copied by its
owner."""
NAMED_ELSEWHERE = re.compile(
    r"rounds/|replay/(examples-|history-)?[0-9a-f]{16}\.jsonl|evaluations/[0-9a-f]+/[^/]+\.parquet"
)
"""Paths that matter only while an accepted round or the record of evaluations names them. Checkpoints never
do: a round whose own was changed starts over, and old ones are removed."""
OWNED = re.compile(r"replay/(?:examples-|history-)?([0-9a-f]{16})\.jsonl")
"""Paths of what is kept of an accepted round. The group is the beginning of its snapshot's id."""
REPEATS = "evaluations/*/aa/*.parquet"
RIVAL_ANSWERS = "evaluations/answers/*.jsonl"
REPLAYED = f"replay/{DIGITS * '[0-9a-f]'}.jsonl"
EXAMPLES = f"replay/examples-{DIGITS * '[0-9a-f]'}.jsonl"
HISTORIES = f"replay/history-{DIGITS * '[0-9a-f]'}.jsonl"
SYNTHETIC = "replay/synthetic-*.jsonl"
GENERAL_ANSWERS = "replay/answers-*.jsonl"
ASIDE = "restored-"
"""Beginning of the names of folders of what a restored ledger does not know; a number follows."""
RANKINGS = "rounds/*/attempt-*/artifacts/copr.safetensors"


@dataclass(frozen=True, slots=True)
class StorePaths:
    """Paths below the folder of a store, or the cache of one with a URL; nothing has to exist."""

    folder: Path

    @property
    def ledger(self) -> Path:
        """Database of a store that names no other."""
        return self.folder / LEDGER

    @property
    def snapshots(self) -> Path:
        """Folder of all snapshots."""
        return self.folder / "snapshots"

    @property
    def packed(self) -> Path:
        """Folder of snapshots that are stored as differences."""
        return self.folder / "packed"

    @property
    def staging(self) -> Path:
        """Folder of snapshots that are being written."""
        return self.folder / "staging"

    @property
    def rounds(self) -> Path:
        """Folder of all rounds."""
        return self.folder / "rounds"

    @property
    def replay_buffers(self) -> Path:
        """Folder of kept prompts and stored answers."""
        return self.folder / "replay"

    @property
    def overlaps(self) -> Path:
        """Record of what suites have in common with training data."""
        return self.folder / "evaluations" / "overlap.json"

    @property
    def inbox(self) -> InboxPaths:
        """Folder that feedback is dropped into."""
        return InboxPaths(self.folder / "inbox")

    @property
    def serving(self) -> Path:
        """Folder of servers: their logs, their key and what they serve from."""
        return self.folder / "serving"

    @property
    def serving_key(self) -> Path:
        """Key that clients of a server show."""
        return self.serving / "key"

    def next_aside(self) -> Path:
        """Return the first folder, not made yet, for what a restored ledger does not know."""
        numbers = (int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"{ASIDE}*[0-9]"))
        return self.folder / f"{ASIDE}{1 + max(numbers, default=0)}"

    def round_folders(self) -> Iterator[tuple[int, str, RoundFolder]]:
        """Yield the index, name and folder of every round that left one."""
        for path in sorted(self.rounds.glob("*-*")):
            index, _, name = path.name.partition("-")
            if index.isdigit():
                yield int(index), name, RoundFolder(path)

    def tracker(self, name: str) -> Path:
        """Return the folder of a tracker."""
        return self.folder / name

    def snapshot(self, snapshot: SnapshotId) -> Path:
        """Return the folder of a snapshot."""
        return self.snapshots / inner(snapshot)

    def round(self, index: int, name: str) -> RoundFolder:
        """Return the folder of a round.

        Args:
            index: the round's place in the ledger, from 0.
        """
        return RoundFolder(self.rounds / f"{index:02d}-{inner(name)}")

    def attempt(self, index: int, name: str, attempt: int) -> RunFolder:
        """Return the folder of an attempt at a round; the first is 1."""
        return self.round(index, name).attempt(attempt)

    def evaluation(self, snapshot: SnapshotId, file: str) -> Path:
        """Return the file of a snapshot's results on one suite."""
        return self.folder / "evaluations" / snapshot[:DIGITS] / file

    def repeats(self, snapshot: SnapshotId, suite: str) -> tuple[Path, Path]:
        """Return the files of an A/A run: two measurements of one snapshot."""
        folder = self.folder / "evaluations" / snapshot[:DIGITS] / "aa"
        return folder / f"{suite}-1.parquet", folder / f"{suite}-2.parquet"

    def rival_answers(self, suite: str, digest: str) -> Path:
        """Return the file of the answers that a win rate compares with."""
        return self.folder / "evaluations" / "answers" / f"{suite}-{digest[:DIGITS]}.jsonl"

    def reference(self, snapshot: SnapshotId, digest: str) -> Path:
        """Return the file of a snapshot's log-likelihoods, which implicit rewards are ratios to."""
        name = f"{snapshot[:DIGITS]}-{digest[:DIGITS]}.json"
        return self.folder / "evaluations" / "references" / name

    def replay(self, snapshot: SnapshotId) -> Path:
        """Return the file of the prompts kept of an accepted round, by the snapshot that owns them."""
        return self.replay_buffers / f"{snapshot[:DIGITS]}.jsonl"

    def replay_examples(self, snapshot: SnapshotId) -> Path:
        """Return the file of the examples kept of an accepted round, by the snapshot that owns them."""
        return self.replay_buffers / f"examples-{snapshot[:DIGITS]}.jsonl"

    def prompt_history(self, snapshot: SnapshotId) -> Path:
        """Return the file of the prompts' history up to an accepted round, by the round's snapshot."""
        return self.replay_buffers / f"history-{snapshot[:DIGITS]}.jsonl"

    def general_answers(self, digest: str) -> Path:
        """Return the file of the base's answers to a general pool."""
        return self.replay_buffers / f"answers-{digest[:DIGITS]}.jsonl"

    def synthetic_prompts(self, digest: str) -> Path:
        """Return the file of prompts that an accepted policy wrote."""
        return self.replay_buffers / f"synthetic-{digest[:DIGITS]}.jsonl"

    def stored_prompts(self) -> list[Path]:
        """List the files of kept prompts that exist."""
        return [
            path
            for path in self.replay_buffers.glob("*.jsonl")
            if not path.name.startswith(("answers-", "examples-", "history-"))
        ]

    def stored_examples(self) -> list[Path]:
        """List the files of kept examples that exist."""
        return list(self.replay_buffers.glob("examples-*.jsonl"))

    def stored_answers(self) -> list[Path]:
        """List the files of stored answers that exist."""
        return list(self.folder.glob(GENERAL_ANSWERS))

    def stored_rankings(self) -> list[Path]:
        """List the artifacts that exist and hold ranked answers of rounds."""
        return list(self.folder.glob(RANKINGS))

    def stored_histories(self) -> list[Path]:
        """List the files of prompts' histories that exist."""
        return list(self.replay_buffers.glob("history-*.jsonl"))

    def stored_retirements(self) -> list[Path]:
        """List the records of what rounds override that exist."""
        return [
            path
            for folder in self.rounds.glob("*")
            if (path := RoundFolder(folder).retired).is_file()
        ]

    def changing(self) -> Iterator[Path]:
        """Yield the files that exist and change while a round runs: the ledger's, and those of metrics."""
        attempts = "rounds/*/attempt-*"
        for pattern in (f"{LEDGER}*", f"{attempts}/{METRICS}", f"{attempts}/*/{METRICS}"):
            yield from sorted(self.folder.glob(pattern))

    def mirrored(self) -> Iterator[str]:
        """Yield the names of the complete files that a store with a URL keeps there too."""
        for name in MIRRORED:
            yield from self.mirrored_in(self.folder / name)

    def mirrored_in(self, folder: Path) -> Iterator[str]:
        """Yield the names of such files in one folder of the store."""
        for path in folder.rglob("*"):
            inner = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in inner.parts)
            if path.is_file() and not hidden and STAGING not in inner.parts:
                yield inner.as_posix()

    def relative(self, path: Path) -> str:
        """Return the name of a file in the ledger: its path from the store, with forward slashes."""
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True, slots=True)
class InboxPaths:
    """Paths below the folder of the inbox."""

    folder: Path

    @property
    def drop(self) -> Path:
        """Folder that other programs put files into, with a subfolder for every stream."""
        return self.folder / "drop"

    @property
    def done(self) -> Path:
        """Folder of files that were stored."""
        return self.folder / "done"

    @property
    def failed(self) -> Path:
        """Folder of files that could not be read."""
        return self.folder / "failed"

    @property
    def lock(self) -> Path:
        """File that the one process locks that sweeps."""
        return self.folder / ".sweep"

    @property
    def token(self) -> Path:
        """Token that senders show to the server of the inbox."""
        return self.folder / "token"


def inner(name: str) -> str:
    """Return a path that a ledger or another file names, if it leads to no place outside its folder.

    Raises:
        StoreError: it would.
    """
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise StoreError(
            f"{name!r} leads out of the store",
            cause="whoever wrote the ledger or its backup wants another file read or replaced",
            remedy="restore a backup of your own; nothing was read or written there",
        )
    return name


def remedy_of(path: str) -> str:
    """Say what becomes of a file that is missing or was changed, as the end of a sentence.

    Args:
        path: relative to the store, as the ledger names it.
    """
    if path.startswith(
        ("replay/answers-", "replay/synthetic-", "evaluations/answers/", "evaluations/references/")
    ):
        return "it is made again when a round needs it"
    if path.startswith("replay/history-"):
        return "restore it from a backup: rounds that draw by mastery or age begin with it"
    if "/aa/" in path:
        return "keel gate aa CAMPAIGN measures it again; until then it counts for nothing"
    return "it is made again from its round's data when a round needs it"
