"""A worker without a sandbox: what it cannot look into, and the user it is of where Keel runs as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import RewardConfig
from rewards.isolation import keeper, user
from rewards.isolation.levels import Isolation
from rewards.isolation.sandbox import landlock
from rewards.isolation.setup import Setup
from rewards.rubric import build_rubric
from rollouts.errors import UserError
from tests.chaos.rewards.rubrics import group, scores

LOOKS = """
import os
from pathlib import Path


def spies(completions, log_extra, owner, secret):
    attempts = {
        "variables": lambda: Path(f"/proc/{owner}/environ").read_bytes(),
        "memory": lambda: Path(f"/proc/{owner}/mem").open("rb").close(),
        "keeper": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "signal": lambda: os.kill(owner, 0),
        "file": lambda: Path(secret).read_text(),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            log_extra(name, [True])
        except OSError:
            log_extra(name, [False])
    Path("own.txt").write_text("x")
    log_extra("user", [os.getuid(), os.getgid()])
    return [1.0] * len(completions)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can read, with a file that only this one can."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    (made / "looks.py").write_text(LOOKS)
    (made / "secret").write_text("secret")
    (made / "secret").chmod(0o600)
    (made / "own").mkdir()
    yield made
    shutil.rmtree(made)


def spied(folder: Path, **settings: Any) -> dict[str, list[Any]]:
    """What a reward in that folder got, and the line that says what it runs under."""
    options = {"owner": os.getpid(), "secret": os.fspath(folder / "secret")}
    name = f"{folder}/looks.py:spies"
    rubric = build_rubric([RewardConfig(name=name, options=options, **settings)])
    try:
        assert scores(rubric, group("a"))[0].value == 1.0
        seen = {key.removeprefix("spies/"): value for key, value in rubric.extras.items()}
        return {**seen, "line": rubric.isolation_lines()}
    finally:
        rubric.close()


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_a_process_looks_into_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    seen = spied(folder, user="root") if os.geteuid() == 0 else spied(folder)
    assert [seen[name] for name in ("variables", "memory", "keeper")] == [[False]] * 3
    assert seen["signal"] == [landlock.version() < 6]
    assert seen["file"] == [True] and seen["user"] == [os.getuid(), os.getgid()]
    assert "as " not in seen["line"][0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_another_user_reads_no_file_of_root(folder: Path) -> None:
    here, there = os.pipe()
    child = os.fork()
    if child == 0:  # what is needed is imported by now: this Python may lie in root's home
        try:
            keeper.confine(
                Setup(
                    channel=there, control=0, owner=0, scratch=str(folder / "own"), folder="/",
                    memory_bytes=None, user=(65534, 65534),
                )
            )  # fmt: skip
            (folder / "own" / "file").write_text("x")
            opens = os.access(folder / "secret", os.R_OK)
            groups = (os.getgid(), *os.getgroups())
            os.write(there, repr((os.getresuid(), groups, opens)).encode())
        finally:
            os._exit(0)
    os.close(there)
    with open(here) as answer:
        assert answer.read() == "((65534, 65534, 65534), (65534,), False)"
    os.waitpid(child, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_under_root_code_of_others_is_of_nobody_where_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user, "PYTHON", ())
    name, secret = f"{folder}/looks.py:spies", os.fspath(folder / "secret")

    def of(*names: str, stated: str | None = None, **options: str) -> str | None:
        found = user.other_user(
            names, Isolation(level="process", user=stated), options, folder, "rewards.0"
        )
        return found and found.name

    assert of(name) == "nobody"
    assert of("length") is None and of("length", stated="nobody") == "nobody"
    assert of(name, stated="root") is None
    assert of(name, words=secret) is None
    with pytest.raises(UserError, match=f"rewards.0.user: the user 'nobody' cannot read {secret}"):
        of(name, stated="nobody", words=secret)
    with pytest.raises(UserError, match="there is no user 'keel-none'"):
        of(name, stated="keel-none")
    folder.chmod(0o711)
    assert of(name) is None  # a module beside it could not be found
