"""A sandbox: no network, no files but its own, no other processes; and no weaker one in its place."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from align.config.campaign import RewardConfig
from rewards.isolation.process import Worker, WorkerEnded
from rewards.isolation.sandbox import bwrap, sandbox
from rewards.rubric import build_rubric
from rollouts.errors import UserError
from tests.chaos.rewards.rubrics import group, kinds, rubric_of, scores
from tests.chaos.rewards.test_processes import gone
from tests.patience import patient

try:
    sandbox.provider()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_what_is_outside_cannot_be_reached(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    options = {"secret": str(secret), "victim": str(os.getpid())}
    rubric = rubric_of("looks_around", isolation="sandbox", options=options)
    assert scores(rubric, group("a"))[0].value == 1.0
    found = {key.removeprefix("looks_around/"): value for key, value in rubric.extras.items()}
    assert found.pop("own") == [["own.txt"]]
    assert len(found) == 11
    for attempt, (said, *_) in found.items():
        assert not said.startswith("done"), attempt
    assert secret.read_text() == "secret"
    rubric.close()


@pytest.fixture
def bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which that program is the only way to make a sandbox."""
    if not bwrap.installed():
        pytest.skip("bubblewrap is not installed")
    try:
        Worker(sandbox._nothing("bwrap")).end()
    except WorkerEnded as ended:
        pytest.skip(f"bubblewrap cannot make a sandbox here: {ended.failure.reason}")
    monkeypatch.setattr(sandbox, "_found", lambda: ("bwrap", ()))


@pytest.mark.usefixtures("bubblewrap")
def test_bubblewrap_keeps_the_same_things_out(tmp_path: Path) -> None:
    assert sandbox.description().startswith("bwrap, ")
    test_what_is_outside_cannot_be_reached(tmp_path)


@pytest.mark.usefixtures("bubblewrap")
def test_traps_end_in_bubblewrap_too() -> None:
    rubric = rubric_of("spring", isolation="sandbox", deadline_s=8.0, sample_deadline_s=0.5)
    found = scores(rubric, group("a", "sleeps", "bb", "segfaults"))
    assert [score.value for score in found] == [1.0, None, 2.0, None]
    assert kinds(rubric) == {"deadline": 1, "crash": 1}
    below = [process.pid for process in psutil.Process().children(recursive=True)]
    rubric.close()
    assert all(gone(pid) for pid in below)


def test_a_fork_bomb_stays_small_and_ends_with_its_worker() -> None:
    rubric = rubric_of("fork_bomb", isolation="sandbox", deadline_s=20.0)
    assert scores(rubric, group("a"))[0].value == 1.0
    count, _ = rubric.extras["fork_bomb/refused"]
    assert 0 < count < 256
    rubric.close()


@pytest.mark.parametrize(
    ("trap", "kind"),
    [("sleeps", "deadline"), ("segfaults", "crash"), ("exits", "crash"), ("allocates", "memory")],
)
def test_traps_end_as_they_do_without_a_sandbox(trap: str, kind: str) -> None:
    rubric = rubric_of("spring", isolation="sandbox", deadline_s=8.0, sample_deadline_s=0.5)
    assert [score.value for score in scores(rubric, group("a", trap, "bb"))] == [1.0, None, 2.0]
    assert kinds(rubric) == {kind: 1}
    rubric.close()


def test_what_the_model_wrote_is_run_in_a_sandbox_unless_told_otherwise() -> None:
    rubric = build_rubric([RewardConfig(name="code_tests", deadline_s=patient(60.0))])
    assert "sandbox" in rubric.isolation_lines()[0]
    programs = group("print(int(input()) + 1)", "print(2)", tests=[{"input": "4", "output": "5"}])
    functions = group(
        "def f(x): return x + 1", "import os; os._exit(0)", tests=["assert f(4) == 5"]
    )
    found = scores(rubric, programs, functions)
    assert [score.value for score in found] == [1.0, 0.0, 1.0, 0.0]
    rubric.close()


def test_a_daemon_ends_with_its_sandbox() -> None:
    rubric = rubric_of("daemon", isolation="sandbox")
    assert scores(rubric, group("a"))[0].value == 1.0
    below = [process.pid for process in psutil.Process().children(recursive=True)]
    assert len(below) >= 3  # keeper, worker, daemon
    rubric.close()
    assert all(gone(pid) for pid in below)


def test_a_machine_without_a_sandbox_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_found", lambda: (None, ("namespaces: not permitted",)))
    with pytest.raises(UserError, match="sandbox is not available") as caught:
        rubric_of("odd", isolation="sandbox")
    assert "namespaces: not permitted" in str(caught.value)


BESIDE = """
import os
from pathlib import Path
import helper
from parts.words import WORDS

def beside(completions, log_extra, **columns):
    here = Path(__file__).resolve().parent
    seen = sorted(str(p.relative_to(here)) for p in here.rglob("*") if "__pycache__" not in str(p))
    log_extra("seen", [" ".join(seen)] * len(completions))
    return [float(helper.GOOD in c and WORDS in c) for c in completions]
"""


def test_of_a_rewards_folder_only_its_code_and_what_it_declares_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither `.env` nor `.git` nor a sibling can be read, not even their names."""
    files = {
        "reward.py": BESIDE, "helper.py": "import deeper\nGOOD = deeper.GOOD", "deeper.py": "GOOD = 'a'",
        "parts/__init__.py": "", "parts/words.py": "WORDS = 'b'", "parts/.env": "TOKEN=1",
        ".env": "TOKEN=1", ".git/config": "url", "other.py": "", "notes.txt": "", "words.txt": "b",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    part = RewardConfig(
        name=f"{tmp_path}/reward.py:beside", isolation="sandbox", files=("words.txt",)
    )
    monkeypatch.chdir(tmp_path)
    rubric = build_rubric([part])
    assert [s.value for s in scores(rubric, group("ab"))] == [1.0]
    seen = rubric.extras["beside/seen"][0]
    rubric.close()
    assert seen.split() == [
        "deeper.py", "helper.py", "parts", "parts/__init__.py", "parts/words.py", "reward.py", "words.txt",
    ]  # fmt: skip


def test_a_declared_file_that_is_missing_is_said_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def good(completions, **_):\n    return [1.0] * len(completions)\n")
    part = RewardConfig(name=f"{file}:good", isolation="sandbox", files=("words.txt",))
    with pytest.raises(UserError, match=r"no file 'words.txt' that the sandbox could show"):
        build_rubric([part])
