"""Freed memory stays with the process, where the C library is one that can be told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from align.learner.ranks import allocation
from align.learner.ranks.allocation import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
from align.learner.ranks.allocation import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def once():
    kept = [torch.ones(1 << 20) for _ in range(40)]

once()
once()
before = faults()
once()
print(faults() - before)
"""


def faults(mode: str) -> int:
    """Pages that the system had to give for memory that the process has had before."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=False
    )
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_that_comes_again_is_not_asked_for_again() -> None:
    assert faults("keep") * 10 < faults("default")


def test_another_c_library_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "CDLL", lambda _: object())
    assert not keep_freed_memory()
