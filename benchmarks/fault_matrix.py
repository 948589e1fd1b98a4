"""The crash matrix: a campaign ends before each durable operation, in each of four ways, and goes on.

The points are listed from the code: an undisturbed `keel run` is watched, and every operation (`fsync`,
`replace`, `unlink`, a commit of the ledger, a copy to the store's URL) counts once for each path of
functions that leads to it. A point that a campaign passes several times is tried at a drawn one of them.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from benchmarks.fault_crashes import (
    length_of,
    outcome_after,
    results_of,
    started,
    wait,
)
from benchmarks.fault_disk import Point, WatchedDisk
from benchmarks.fault_trial import FaultOutcome, FaultTrial

CUT = "cut"
"""Folder of what a power cut leaves."""


def stop_by_exit() -> None:
    """End as a program ends itself."""
    sys.exit(1)


def stop_by_exception() -> None:
    """Fail as a disk fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def stop_by_kill() -> None:
    """End at once."""
    os.kill(os.getpid(), signal.SIGKILL)


WAYS: Mapping[str, Callable[[], None]] = {
    "exit": stop_by_exit,
    "exception": stop_by_exception,
    "sigkill": stop_by_kill,
    "power-cut": stop_by_kill,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Crashing:
    """A driver that ends before an operation."""

    folder: Path
    way: str
    point: Point

    def __call__(self, run: Callable[[], None]) -> None:
        """Run a campaign until the operation."""
        disk = WatchedDisk(folder=self.folder / "home", kept=self.folder / "kept")

        def crash() -> None:
            if self.way == "power-cut":
                disk.survivors(self.folder / CUT)
            WAYS[self.way]()

        disk.crash_at, disk.crash = self.point, crash
        with disk.watch():
            run()


@dataclass(frozen=True, kw_only=True, slots=True)
class Counting:
    """A driver that writes down the operations that it comes to."""

    folder: Path

    def __call__(self, run: Callable[[], None]) -> None:
        """Run a campaign to its end."""
        disk = WatchedDisk(folder=self.folder / "home", kept=self.folder / "kept")
        try:
            with disk.watch():
                run()
        finally:  # A command ends by SystemExit.
            (self.folder / "points.json").write_text(json.dumps(disk.sites))


def points_of(folder: Path) -> dict[str, int]:
    """Return the times that a campaign comes to each site, which a driver counts in this folder unless one
    has."""
    record = folder / "points.json"
    if not record.exists():
        rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "home").mkdir()
        wait(started(folder, Counting(folder=folder)), folder)
    sites: dict[str, int] = json.loads(record.read_text())
    return dict(sorted(sites.items()))


def crashed(way: str, point: Point, folder: Path, undisturbed: Path) -> FaultOutcome:
    """End a campaign before an operation, then run it to its end."""
    story = f"{way} before time {point.time} of {point.site}"
    (folder / "home").mkdir(parents=True)
    process = started(folder, Crashing(folder=folder, way=way, point=point))
    process.join()
    if way == "power-cut" and (folder / CUT).is_dir():
        rmtree(folder / "home")
        (folder / CUT).rename(folder / "home")
    return outcome_after(story, folder, results_of(undisturbed))


def matrix(sites: Mapping[str, int]) -> list[tuple[str, Point]]:
    """Return every way to end before every site, in an order that a seed has drawn."""
    draw = random.Random(0)
    cells = [
        (way, Point(site=site, time=draw.randrange(times)))
        for site, times in sites.items()
        for way in WAYS
    ]
    draw.shuffle(cells)
    return cells


def ended_at_a_point(seed: int, folder: Path) -> FaultOutcome:
    """Try one cell of the matrix."""
    undisturbed = folder.parent / "undisturbed"
    length_of(undisturbed)
    cells = matrix(points_of(folder.parent / "points"))
    if seed >= len(cells):
        raise ValueError(f"the matrix has {len(cells)} cells")
    way, point = cells[seed]
    return crashed(way, point, folder, undisturbed)


TRIALS: Mapping[str, FaultTrial] = {
    "crash-matrix": FaultTrial(
        tried="`keel run` ends before one of its durable operations, with samples ahead, a round that is "
        "repaired and a store behind a URL: by an exit, an exception of the disk, SIGKILL, or a power cut "
        "that takes what was not fsynced. The next run ends with the same snapshots, verdicts, items and "
        "metrics, all hashes hold, and no temporary file stays.",
        tries=400,
        run=ended_at_a_point,
    ),
}
