"""A command in a process group: what it sees, and that nothing of it is left however the wait ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.errors import RunError
from align.round.external import process
from align.round.external.process import Command, run_command
from tests.patience import patient

LEAVES_A_CHILD = "sleep 1000 & echo $! > child; "
LEAVES_A_DAEMON = "setsid sleep 1000 & echo $! > child; "


def command(folder: Path, script: str, *, deadline_s: float = 600.0, **more: object) -> Command:
    return Command(
        words=["sh", "-c", script], folder=folder, variables={"KEEL_OUTPUT": "o"},
        log=folder / "log", deadline_s=deadline_s, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def lives(folder: Path, name: str = "child") -> bool:
    """Tell if the process named in a file is there, and no zombie, once it had time to end."""
    status = Path("/proc") / (folder / name).read_text().strip() / "stat"
    until = time.monotonic() + patient(10)
    while time.monotonic() < until:
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("leaves", [LEAVES_A_CHILD, LEAVES_A_DAEMON], ids=["child", "daemon"])
def test_a_command_that_ends_leaves_nothing_behind(tmp_path: Path, leaves: str) -> None:
    run_command(command(tmp_path, leaves + "exit 0"))
    assert not lives(tmp_path)


RUNS = """
import sys
from pathlib import Path
from align.round.external.process import Command, run_command

folder = Path(sys.argv[1])
run_command(Command(words=["sh", "-c", sys.argv[2]], folder=folder, variables={}, log=folder / "log",
                    deadline_s=1000.0))
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
@pytest.mark.parametrize("leaves", [LEAVES_A_CHILD, LEAVES_A_DAEMON], ids=["child", "daemon"])
def test_a_run_that_is_killed_leaves_nothing_of_its_command(
    tmp_path: Path, leaves: str, ending: signal.Signals
) -> None:
    words = [sys.executable, "-c", RUNS, str(tmp_path), leaves + "echo $$ > shell; sleep 1000"]
    run = subprocess.Popen(words)
    until = time.monotonic() + patient(60)
    while not (tmp_path / "shell").exists() or not (tmp_path / "shell").read_text():
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.05)
    assert (tmp_path / "child").read_text()
    run.send_signal(ending)
    run.wait()
    assert not lives(tmp_path) and not lives(tmp_path, "shell")


def test_a_watchdog_that_is_killed_takes_the_command_with_it(tmp_path: Path) -> None:
    script = LEAVES_A_CHILD + "kill -9 $PPID; sleep 1000"
    with pytest.raises(RunError, match="ended by SIGKILL"):
        run_command(command(tmp_path, script))
    assert not lives(tmp_path)


def test_a_deadline_ends_all_that_it_started(tmp_path: Path) -> None:
    script = LEAVES_A_CHILD + "echo still here; sleep 1000"
    with pytest.raises(RunError, match=r"(?s)took longer than.*still here"):
        run_command(command(tmp_path, script, deadline_s=patient(3)))
    assert not lives(tmp_path)


def test_one_that_ignores_the_first_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    script = "trap '' TERM; " + LEAVES_A_CHILD + "while true; do sleep 1; done"
    with pytest.raises(RunError, match="took longer"):
        run_command(command(tmp_path, script, deadline_s=patient(3)))
    assert not lives(tmp_path)


def test_an_interrupt_ends_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BEAT_EVERY_S", 0.0)

    def interrupt() -> None:
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(command(tmp_path, LEAVES_A_CHILD + "sleep 1000"), interrupt)
    assert not lives(tmp_path)


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo oh no; exit 7", "(?s)exit code 7.*oh no"), ("kill -9 $$", "ended by SIGKILL")],
)
def test_a_failure_says_how_it_ended_and_what_it_printed(
    tmp_path: Path, script: str, said: str
) -> None:
    with pytest.raises(RunError, match=said):
        run_command(command(tmp_path, script))


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    missing = Command(
        words=["./none"], folder=tmp_path, variables={}, log=tmp_path / "log", deadline_s=9.0
    )
    with pytest.raises(RunError, match="cannot be started"):
        run_command(missing)


def test_it_sees_what_is_listed_granted_and_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A_TOKEN", "GRANTED", "HF_HOME"):
        monkeypatch.setenv(name, "x")
    seen = command(tmp_path, "true", granted=("GRANTED",)).environment()
    assert {"PATH", "HOME", "HF_HOME", "GRANTED", "KEEL_OUTPUT"} <= seen.keys()
    assert "A_TOKEN" not in seen
