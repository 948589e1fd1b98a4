"""A disk that crashes at a chosen operation, and keeps what was fsynced when the power goes.

The operations are the system's own (`os.fsync`, `os.replace`, `os.rename`, `os.unlink`), the commits of
databases and the copies to a store's URL, watched from outside: no product code knows of this. After a
power cut a folder has the entries that it had when it was last fsynced, and a file the bytes. SQLite syncs
by itself, and its files keep what was committed.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.house import PACKAGES, ROOT

OPERATIONS = ("fsync", "replace", "rename", "unlink")
SQLITE = (".db", ".db-wal", ".db-shm", ".db-journal")
"""Endings of SQLite's files."""
COPIES = ("write", "upload", "remove")
"""Methods of `Remote` that change what lies behind a URL."""
PREFIXES = tuple(f"{ROOT}/{package}/" for package in PACKAGES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One time that the code comes to an operation."""

    site: str
    """Name of the operation, and the functions of the product that lead to it, innermost first."""
    time: int
    """Number of the times that it came there before."""


@dataclass(kw_only=True)
class WatchedDisk:
    """The operations below a folder, in order, with a crash before one of them."""

    folder: Path
    kept: Path
    """Folder for the bytes of files as they were last fsynced, outside of ``folder``."""
    crash_at: int | Point | None = None
    """Operation that is not reached, or its number from 0; None: all are."""
    crash: Callable[[], None] = field(default=lambda: None)
    """Ends the program, or raises."""
    done: list[str] = field(default_factory=list)
    """Operations so far, each as its name and the path from the folder."""
    sites: Counter[str] = field(default_factory=Counter)
    """Times that the code came to each site; see `Point`."""
    _listings: dict[int, dict[str, os.stat_result]] = field(default_factory=dict)
    """Entries of each folder by name when it was last fsynced; numbers are inodes."""
    _owner: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self.folder, self.kept = self.folder.resolve(), self.kept.resolve()
        self.kept.mkdir(parents=True, exist_ok=True)
        for parent, _, names in os.walk(self.folder):
            self._keep_folder(Path(parent))
            for name in names:
                self._keep_file(Path(parent, name))

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the operations of this process while the block runs."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        from align.store.remote import Remote

        real = {name: getattr(os, name) for name in OPERATIONS}
        copies = {name: getattr(Remote, name) for name in COPIES}

        def commit(connection: Any) -> None:
            if connection.get_execution_options().get("write", False):
                self._reach(f"commit {connection.engine.url.database}")

        event.listen(Engine, "commit", commit)
        for name in OPERATIONS:
            setattr(os, name, self._watched(name, real[name]))
        for name in COPIES:
            setattr(Remote, name, self._copying(name, copies[name]))
        try:
            yield
        finally:
            for name in OPERATIONS:
                setattr(os, name, real[name])
            for name in COPIES:
                setattr(Remote, name, copies[name])
            event.remove(Engine, "commit", commit)

    def survivors(self, target: Path) -> None:
        """Write what a power cut would leave now into a folder that does not exist."""
        self._rebuild(self.folder, os.stat(self.folder).st_ino, target)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(first: Any, *rest: Any, **options: Any) -> Any:
            path = Path(_path_of(first) if name == "fsync" else str(first))
            if options.get("dir_fd") is not None:
                path = Path(_path_of(options["dir_fd"])) / path
            inside = path.absolute().is_relative_to(self.folder) and os.getpid() == self._owner
            if inside:
                self._reach(f"{name} {path.absolute().relative_to(self.folder)}")
            result = real(first, *rest, **options)
            if inside and name == "fsync":
                (self._keep_folder if path.is_dir() else self._keep_file)(path)
            return result

        return operation

    def _copying(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def copy(*arguments: Any, **options: Any) -> Any:
            if os.getpid() == self._owner:
                self._reach(f"{name} {arguments[-1]} behind the URL")
            return real(*arguments, **options)

        return copy

    def _reach(self, what: str) -> None:
        site = f"{what.partition(' ')[0]}: {' < '.join(_functions())}"
        point = Point(site=site, time=self.sites[site])
        number = len(self.done)
        self.done.append(what)
        self.sites[site] += 1
        if self.crash_at in (number, point):
            self.crash()

    def _keep_folder(self, path: Path) -> None:
        with os.scandir(path) as entries:
            self._listings[os.stat(path).st_ino] = {
                entry.name: entry.stat(follow_symlinks=False) for entry in entries
            }

    def _keep_file(self, path: Path) -> None:
        target = self.kept / str(path.stat().st_ino)
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)

    def _rebuild(self, now: Path, inode: int, target: Path) -> None:
        """Write a folder with the entries that it was last fsynced with."""
        target.mkdir()
        paths = self._paths()
        for name, status in self._listings.get(inode, {}).items():
            number, here = status.st_ino, paths.get(status.st_ino, Path(os.devnull))
            if stat.S_ISDIR(status.st_mode):
                self._rebuild(here, number, target / name)
            elif name.endswith(SQLITE):
                continue
            elif (kept := self.kept / str(number)).exists():
                shutil.copyfile(kept, target / name)
            else:
                (target / name).touch()
        for file in now.iterdir() if now.is_dir() else ():
            if file.name.endswith(SQLITE) and not file.name.startswith("."):
                shutil.copyfile(file, target / file.name)

    def _paths(self) -> dict[int, Path]:
        return {
            path.stat().st_ino: path
            for path in (self.folder, *self.folder.rglob("*"))
            if path.exists()
        }


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _functions() -> Iterator[str]:
    """Yield the functions of the product that are under way, innermost first, as ``file:name``."""
    frame = sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        file = frame.f_code.co_filename
        if file.startswith(PREFIXES):
            yield f"{file.removeprefix(f'{ROOT}/')}:{frame.f_code.co_name}"
