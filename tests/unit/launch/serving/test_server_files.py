"""Where servers write: one place for each, cleared when whoever could write there has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launch.serving.server_files import KEPT_LOGS, ServerFiles, claim, clear


def merged_into(place: ServerFiles) -> Path:
    file = place.scratch / "merged" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    return file


def test_two_servers_of_one_snapshot_share_nothing(tmp_path: Path) -> None:
    places = [claim(tmp_path, "ab") for _ in range(2)]
    assert len({place.log for place in places} | {place.scratch for place in places}) == 4
    assert all(place.log.name.startswith("ab-") for place in places)
    for place in places:
        os.close(place.output)


def test_what_a_killed_server_left_is_cleared_and_its_log_stays(tmp_path: Path) -> None:
    """A process that inherited the log still counts as the server, as vLLM does when Keel is killed."""
    place = claim(tmp_path, "ab")
    weights = merged_into(place)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=place.output,
    ) as server:  # fmt: skip
        os.close(place.output)
        clear(tmp_path)
        assert weights.exists()
        server.kill()
    clear(tmp_path)
    assert not place.scratch.exists()
    assert place.log.exists()


def test_a_folder_without_a_log_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "scratch-old").mkdir()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_latest_logs_are_kept_and_that_of_a_running_server(tmp_path: Path) -> None:
    running = claim(tmp_path, "running")
    os.utime(running.log, (0, 0))
    for age in range(KEPT_LOGS + 3):
        log = tmp_path / f"{age}.log"
        log.touch()
        os.utime(log, (1000 - age, 1000 - age))
    clear(tmp_path)
    kept = {f"{age}.log" for age in range(KEPT_LOGS)} | {running.log.name}
    assert {log.name for log in tmp_path.glob("*.log")} == kept
    os.close(running.output)


def test_nothing_to_clear(tmp_path: Path) -> None:
    clear(tmp_path / "serving")
    assert not (tmp_path / "serving").exists()
