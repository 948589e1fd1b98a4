"""Every kind of file of a finished store, damaged: a message or an answer, never a trace or a change."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from align.store.backups.ledger_backups import back_up
from launch.cli import app
from rollouts.errors import KeelError, UserError, system_errors
from tests.unit.campaigns import ENFORCE, raw_campaign, rounds
from tests.unit.full_store import STEPS, SUITES, full

DAMAGES = ("missing", "empty", "truncated", "flipped", "garbage", "folder")
KINDS = (
    "ledger.db",
    "ledger-backups/*.db",
    "snapshots/*/manifest.json",
    "snapshots/*/config.json",
    "evaluations/*/general-*.parquet",
    "evaluations/overlap.json",
    "rounds/*/attempt-1/metrics.jsonl",
    "rounds/*/attempt-1/signals.json",
    "rounds/*/attempt-1/rollouts/step-0000.parquet",
)
COMMANDS = (("status",), ("report", "--out", "page.html"), ("gate", "recompute", "round0"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a campaign file, and the store of its three rounds."""
    folder = tmp_path_factory.mktemp("finished")
    assert back_up(full(folder, "text").config) is None
    raw = raw_campaign(
        folder,
        store="store",
        rounds=rounds(*({"steps": STEPS} for _ in range(3))),
        gate=ENFORCE,
        suites=SUITES,
    )
    (folder / "campaign.yaml").write_text(yaml.safe_dump(raw))
    return folder


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    path.parent.chmod(0o755)
    middle = len(content) // 2
    match how:
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[:middle])
        case "flipped":
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 0x41]) + content[middle + 1 :]
            )
        case "garbage":
            path.write_bytes(b"\xff\x00{" * 50)


def files_in(store: Path) -> Mapping[str, str]:
    """Hashes of all files of a store but SQLite's own log."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        # The ledger in every way; of the other files each in two, and in the rest with -m slow.
        pytest.param(kind, how, marks=[pytest.mark.slow] if i and (i + j) % 3 else [])
        for i, kind in enumerate(KINDS)
        for j, how in enumerate(DAMAGES)
    ],
)
def test_a_damaged_file_is_named_or_does_not_matter(
    kind: str, how: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    damage(sorted((tmp_path / "store").glob(kind))[-1], how)
    before = files_in(tmp_path / "store")
    for name, *options in COMMANDS:
        words = [name, *options[:1]] if name == "gate" else [name]
        rest = options[len(words) - 1 :]
        result = CliRunner().invoke(app, [*words, "campaign.yaml", *rest])
        error = result.exception
        if error is None or isinstance(error, SystemExit):
            # SQLite has no checksum of its rows: a flipped bit of a text is seen by nobody here.
            assert kind != "ledger.db" or how == "flipped"
            continue
        assert isinstance(error, KeelError), (words, result.output, repr(error))
        assert error.exit_code == 2, repr(error)
        assert error.where
        assert error.remedy
    assert files_in(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "let this user read and write it"),
        (OSError(30, "Read-only file system", "a/b"), "mount the file system"),
        (IsADirectoryError(21, "Is a directory", "a/b"), "a folder in the place of a file"),
        (OSError(28, "No space left on device"), "free some space"),
    ],
)
def test_the_system_s_refusals_are_messages(error: OSError, said: str) -> None:
    with pytest.raises(UserError, match="the system refused this file") as refused, system_errors():
        raise error
    assert said in (refused.value.remedy or "")
    assert refused.value.where == error.filename


def test_other_failures_of_the_system_keep_their_trace() -> None:
    with pytest.raises(ConnectionResetError), system_errors():
        raise ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(FileNotFoundError), system_errors():
        raise FileNotFoundError("no number, no file")
