"""Worker processes: what they see, how they share work, and that none outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollouts.errors import UserError
from tests.chaos.rewards.rubrics import group, rubric_of, scores
from tests.patience import patient

ROOT = Path(__file__).resolve().parents[3]


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Tell if a process has ended, or does so in time."""
    until = time.monotonic() + patient(within_s)
    while psutil.pid_exists(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_a_worker_sees_no_tokens_and_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "OPENAI_API_KEY", "MY_SECRET"):
        monkeypatch.setenv(name, "secret")
    rubric = rubric_of("environment", environment=("MY_SECRET",))
    scores(rubric, group("a"))
    names = set(rubric.extras["environment/names"])
    assert names <= {
        "HF_HUB_OFFLINE", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "MY_SECRET",
        "OMP_NUM_THREADS", "PATH", "PYTHONHASHSEED", "PYTHONPATH", "TMPDIR", "TZ",
    }  # fmt: skip
    assert "MY_SECRET" in names
    folder, home, stdin = rubric.extras["environment/folder"]
    assert folder == home != os.getcwd() and stdin == ""
    rubric.close()
    assert not os.path.exists(folder)


def test_a_daemon_ends_with_its_worker() -> None:
    rubric = rubric_of("daemon")
    scores(rubric, group("a"))
    (pid,) = rubric.extras["daemon/pid"]
    assert psutil.pid_exists(pid)
    rubric.close()
    assert gone(pid)


def test_nothing_outlives_an_owner_that_is_killed() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.chaos.rewards.rubrics import *
rubric = rubric_of("spring", deadline_s=600.0)
print("started", flush=True)
rubric.score([group("loops")])
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "started\n"
    below = [process.pid for process in psutil.Process(owner.pid).children(recursive=True)]
    assert len(below) == 2  # the keeper and the worker
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert all(gone(pid) for pid in below)


def test_workers_share_a_batch_between_its_groups() -> None:
    rubric = rubric_of("counts_calls", workers=2)
    groups = [group(f"{i}a", f"{i}b", f"{i}c") for i in range(16)]
    found = scores(rubric, *groups)
    assert all(score.status == "scored" for score in found)
    assert rubric.metrics["counts_calls/size"] == 6.0  # eight calls of two whole groups
    assert rubric.extras["counts_calls/texts"] == [f"{i}{c}" for i in range(16) for c in "abc"]
    rubric.close()


def test_rewards_that_are_the_same_share_their_workers() -> None:
    first, second = rubric_of("counts_calls"), rubric_of("counts_calls")
    other = rubric_of("counts_calls", memory_gib=3)
    (a,), (b,), (c,) = (scores(rubric, group("x")) for rubric in (first, second, other))
    assert a.value == b.value != c.value
    first.close()
    assert gone(int(a.value or 0))
    assert scores(second, group("x"))[0].status == "scored"  # a new worker
    second.close()
    other.close()


def test_a_forgotten_rubric_leaves_no_process() -> None:
    rubric = rubric_of("counts_calls")
    (score,) = scores(rubric, group("x"))
    del rubric
    assert gone(int(score.value or 0))


def test_batches_begin_before_the_earlier_ones_have_ended() -> None:
    rubric = rubric_of("spring")
    pending = [rubric.open() for _ in range(3)]
    for p, text in zip(pending, ("a", "bb", "ccc"), strict=True):
        p.add({0: group(text)})
    values = [p.result()[0].scores_G[0].value for p in reversed(pending)]
    assert values == [3.0, 2.0, 1.0]
    assert pending[0].result() is pending[0].result()
    assert rubric.failures.samples == 3
    rubric.close()


def test_what_a_rubric_runs_under_is_told() -> None:
    me = "root" if os.geteuid() == 0 else None
    rubric = rubric_of("odd", sample_deadline_s=0.5, workers=2, user=me)
    assert rubric.isolation_lines() == [
        "reward odd: process (2 workers, "
        f"{patient(20):g} s a batch, {patient(0.5):g} s a sample, 4 GiB)"
    ]
    rubric.close()


def test_a_relative_file_is_found_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f(completions): return [2.0] * len(completions)")
    from align.config.campaign import RewardConfig
    from rewards.rubric import build_rubric

    rubric = build_rubric([RewardConfig(name="mine.py:f")])
    assert scores(rubric, group("a"))[0].value == 2.0
    rubric.close()
    with pytest.raises(UserError, match=r"reward 'mine.py:g'"):
        build_rubric([RewardConfig(name="mine.py:g")])
