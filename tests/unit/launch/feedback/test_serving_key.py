"""The file of a key: somebody's own, a mounted Secret, or made here; whole, and not for everybody."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from launch.feedback import token
from launch.feedback.token import read_token
from rollouts.errors import UserError
from tests.patience import patient

KEY = "k" * 40


def written(file: Path, mode: int = 0o600) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(KEY + "\n")
    file.chmod(mode)
    return file


def test_a_secret_is_mounted_as_a_link(tmp_path: Path) -> None:
    """A kubelet puts the files into a folder of their own, which it can exchange at once."""
    written(tmp_path / "..2026" / "key", 0o400)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "key").symlink_to("..data/key")
    assert read_token(tmp_path / "key", option="--api-key-file") == KEY
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o400, "as it was"


def test_a_file_that_is_ours_is_closed_to_others(tmp_path: Path) -> None:
    file = written(tmp_path / "key", 0o444)
    assert read_token(file, option="--api-key-file") == KEY
    assert stat.S_IMODE(file.stat().st_mode) == 0o400


@pytest.mark.parametrize(("mode", "usable"), [(0o400, True), (0o440, True), (0o444, False)])
@pytest.mark.parametrize("why", ["another's", "read only"])
def test_a_file_that_cannot_be_closed_must_not_be_open_to_everybody(
    mode: int, usable: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "key", mode)

    def fchmod(descriptor: int, mode: int) -> None:
        assert why == "read only", "not ours to change"
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(token.os, "fchmod", fchmod)
    if why == "another's":
        monkeypatch.setattr(token.os, "geteuid", lambda: file.stat().st_uid + 1)
    if usable:
        assert read_token(file, option="--api-key-file") == KEY
        return
    with pytest.raises(UserError, match=r"everybody may read it \(mode 0444\)") as caught:
        read_token(file, option="--api-key-file")
    assert "defaultMode: 0440" in str(caught.value)


def test_a_new_key_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed before the key is written out."""

    def fail(descriptor: int) -> None:
        assert not (tmp_path / "key").exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left"):
        patched.setattr(token.os, "fsync", fail)
        read_token(tmp_path / "key", option="--api-key-file")
    assert list(tmp_path.iterdir()) == []
    assert len(read_token(tmp_path / "key", option="--api-key-file")) >= 40


def test_who_comes_second_takes_the_key_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw no file, and both have made a key when the first one puts its own there."""
    meet, got, sync = threading.Barrier(2, timeout=patient(30.0)), [], os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        meet.wait()

    monkeypatch.setattr(token.os, "fsync", fsync)
    read = lambda: got.append(read_token(tmp_path / "key", option="--api-key-file"))  # noqa: E731
    starters = [threading.Thread(target=read) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(got) == 2 and len(set(got)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_pipe_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key")
    with pytest.raises(UserError, match="is no plain file"):
        read_token(tmp_path / "key", option="--api-key-file")
