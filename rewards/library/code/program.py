"""A candidate as a whole program: standard input in, standard output out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rewards.library.code import guest
from rewards.library.code.candidate import ENVIRONMENT, PREFIX, CandidateLimits


def run_program(code: str, stdin: str, limits: CandidateLimits) -> str | None:
    """Run ``code`` and return what it prints, at most 1 MiB; None when it does not end well in time.

    Isolation is that of `rewards.library.code.candidate.Candidate`.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        (work / "program.py").write_text(code, encoding="utf-8")
        (folder / "stdin").write_text(stdin, encoding="utf-8")
        # A file instead of a pipe: the limit on file sizes then also ends what prints without end.
        with (folder / "stdin").open("rb") as source, (folder / "stdout").open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guest.__file__, "program", *limits.arguments],
                cwd=work, env=ENVIRONMENT, start_new_session=True, stdin=source, stdout=printed,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                code_of_exit = process.wait(limits.wall_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code_of_exit != 0:
            return None
        return (folder / "stdout").read_text(encoding="utf-8", errors="replace")
