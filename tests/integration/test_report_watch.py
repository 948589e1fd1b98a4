"""``keel report --watch`` as a process: it serves, whoever else stalls, until it is told to end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.patience import patient
from tests.unit.campaigns import ENFORCE, raw_campaign, rounds
from tests.unit.stores import GOOD, made, write_steps

START = "from launch.cli import main; main()"
DEADLINE_S = patient(60.0)
"""Far beyond what any of this takes; nothing is measured against it."""


@contextmanager
def watching(file: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, and the port that it listens on."""
    command = [sys.executable, "-c", START, "report", str(file), "--watch", "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heeds_interrupts,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+)/", said)
        assert found, said or process.communicate(timeout=DEADLINE_S)[1]
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def _heeds_interrupts() -> None:
    """A background job of a script starts with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    changes = {"rounds": rounds({}), "gate": ENFORCE}
    store = made(tmp_path, GOOD, **changes)
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(raw_campaign(tmp_path, **changes)))
    with watching(file) as (process, port):
        url = f"http://127.0.0.1:{port}/"
        # Browsers open connections in advance and say nothing on some of them.
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S):
            with urlopen(url, timeout=DEADLINE_S) as answer:
                first = answer.read().decode()
            write_steps(store, 0, 1, [{"entropy": 1.0}, {"entropy": 1.5}])
            with urlopen(url, timeout=DEADLINE_S) as answer:
                assert answer.read().decode() != first
            process.send_signal(number)
            out, error = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, error) == (0, "stopped\n", f"reading {file}\n")
