"""The root of Keel's error tree: errors a person can act on.

    KeelError               what happened, where, the value, the likely cause, what to do
    ├── UserError           the input is wrong; the command exits 2 and prints no traceback
    └── RunError            the input was fine and something failed on the way; exits 1

Everything else that is raised is a defect of ours and keeps its traceback. `align.errors` adds the
errors of rounds, stores and gates. Errors stay picklable: they travel through Ray.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any


class KeelError(Exception):
    """A failure described for the person who has to act on it.

    Args:
        what: one sentence: what is wrong, with the offending value in it.
        where: file, key or component, such as ``rounds.0.rewards`` or ``prompts.jsonl:7``.
        cause: the likely reason, when there is one worth naming.
        remedy: the next step, as a command or an edit.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        cause: str | None = None,
        remedy: str | None = None,
    ) -> None:
        from rollouts.machine.variables import masked  # Help is shown without it.

        # An error goes into logs, the ledger and the report: a library's message may hold a password.
        self.what = masked(what, os.environ)
        self.cause = None if cause is None else masked(cause, os.environ)
        self.where, self.remedy = where, remedy
        super().__init__(self.what)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = partial(type(self), where=self.where, cause=self.cause, remedy=self.remedy)
        return (rebuild, (self.what,))

    def __str__(self) -> str:
        from rollouts.machine.variables import masked

        lines = [self.what if self.where is None else f"{self.where}: {self.what}"]
        if self.cause is not None:
            lines.append(f"  likely cause: {self.cause}")
        if self.remedy is not None:
            lines.append(f"  what to do:   {self.remedy}")
        return masked("\n".join(lines), os.environ)  # A place or a remedy may be a URL.


class UserError(KeelError):
    """The input is wrong: one clear message, exit code 2, nothing half-written."""

    exit_code = 2


class RunError(KeelError):
    """The run could not go on although its input was fine."""


class LostRankError(RunError):
    """A rank of the learner, its node or the way to it is gone; a round can go on from its checkpoint."""


class TemplateRefusal(Exception):
    """Chat turns that a chat template cannot render; the message is its own. Callers say whose turns."""


@contextmanager
def within(key: str) -> Iterator[None]:
    """Name a setting in front of the place that a `UserError` names, such as its file and line."""
    try:
        yield
    except UserError as error:
        file = error.where or ""
        if not file.startswith(key):
            error.where = f"{key}: {file}" if file else key
        raise


ENVIRONMENT: Mapping[int, str] = {
    errno.EACCES: "let this user read and write it (chmod u+rw)",
    errno.EPERM: "let this user read and write it (chmod u+rw)",
    errno.EROFS: "mount the file system so that it can be written, or use another folder",
    errno.ENOSPC: "free some space and run again; everything committed so far is safe",
    errno.EDQUOT: "free some space and run again; everything committed so far is safe",
    errno.EIO: "the disk is failing: move the files to another one, or restore them from a backup",
    errno.ENOENT: "bring the file back, or restore it from a backup",
    errno.EISDIR: "there is a folder in the place of a file: move it away",
    errno.ENOTDIR: "there is a file in the place of a folder: move it away",
    errno.ENOTEMPTY: "there is a folder in its place: move it away",
    errno.EEXIST: "something else is in its place: move it away",
}
"""Remedies of failures of the system that are no defect of ours, by their numbers."""


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn failures of the system with a file (missing, no permission, no space) into a `UserError`."""
    try:
        yield
    except OSError as error:
        remedy = ENVIRONMENT.get(error.errno or 0)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if remedy is None or (error.filename is None and not full):
            raise
        file = error.filename2 or error.filename
        raise UserError(
            f"the system refused this file: {error.strerror}",
            where=None if file is None else str(file),
            remedy=remedy,
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of an error without one its name and arguments."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def nearest(name: str, known: Sequence[str]) -> str:
    """Return a remedy for a misspelt name: the nearest known one, or the whole list.

    >>> nearest("exact_mach", ["exact_match", "length"])
    "did you mean 'exact_match'? Known: exact_match, length"
    >>> nearest("exact_match", [])
    'Known: none'
    """
    listing = "Known: " + (", ".join(sorted(known)) or "none")
    close = closest(name, known)
    return f"did you mean {close!r}? {listing}" if close is not None else listing


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a misspelt one is most like, whatever its case; None if none is.

    >>> closest("GRPO", ["grpo", "ppo"]), closest("gsm8k", ["gsm8k_local", "ifeval"])
    ('grpo', 'gsm8k_local')
    """
    folded = {word.casefold().replace("-", "_"): word for word in known}
    word = name.casefold().replace("-", "_")
    begun = [other for other in folded if len(word) > 2 and other.startswith(word)]
    close = get_close_matches(word, folded, n=1) or begun
    close = close or get_close_matches(word, folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None
