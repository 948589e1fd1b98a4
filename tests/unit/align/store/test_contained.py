"""Only plain files of a folder's own are copied into a snapshot or an export."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from align.errors import UserError
from align.store.snapshots.contained import copy_contained

Make = Callable[[Path, Path], None]


def unix_socket(file: Path, secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        before = os.getcwd()
        os.chdir(file.parent)  # The path of a socket has 108 bytes at most.
        try:
            bound.bind(file.name)
        finally:
            os.chdir(before)


def link_to_a_link(file: Path, secret: Path) -> None:
    (file.parent / "other").symlink_to(secret)
    file.symlink_to("other")


FOREIGN: dict[str, tuple[Make, str]] = {
    "symbolic link": (lambda file, secret: file.symlink_to(secret), "outside the model folder"),
    "relative link": (
        lambda file, secret: file.symlink_to(Path("..", secret.name)), "outside the model folder",
    ),
    "link to a link": (link_to_a_link, "outside the model folder"),
    "hard link": (lambda file, secret: os.link(secret, file), "another name outside"),
    "pipe": (lambda file, secret: os.mkfifo(file), "not a plain file"),
    "socket": (unix_socket, "No such device or address"),
    "device": (lambda file, secret: file.symlink_to("/dev/zero"), "not a plain file"),
    "folder": (lambda file, secret: file.mkdir(), "not a plain file"),
    "nothing": (lambda file, secret: file.symlink_to("nothing"), "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_the_folders_own_is_not_copied(kind: str, tmp_path: Path) -> None:
    folder, secret, target = tmp_path / "model", tmp_path / "secret", tmp_path / "target"
    folder.mkdir()
    secret.write_text("a secret")
    make, message = FOREIGN[kind]
    make(folder / "notes.txt", secret)
    with pytest.raises(UserError, match=message):
        copy_contained(folder / "notes.txt", target)
    assert not target.exists()


def test_links_within_a_folder_or_a_hubs_cache_are(tmp_path: Path) -> None:
    commit = tmp_path / "models--a--b" / "snapshots" / "c0"
    commit.mkdir(parents=True)
    blob = commit.parents[1] / "blobs"
    blob.mkdir()
    (blob / "0").write_text("content")
    (commit / "config.json").symlink_to("../../blobs/0")
    os.link(blob / "0", commit / "hard.json")
    for name in ("config.json", "hard.json"):
        copy_contained(commit / name, tmp_path / name)
        assert (tmp_path / name).read_text() == "content"
