"""Both servers as processes of their own, under the attacks of `benchmarks.fault_clients`, few of each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.fault_clients import ATTACKS, running

FEW = {"silent connections": 48, "slow headers": 24, "noise": 60, "a flood of connections": 48}
"""Numbers of connections; of any other attack one."""


@pytest.mark.parametrize(("kind", "parser"), [("feedback", "httptools"), ("serving", "h11")])
def test_hostile_clients_harm_nobody(kind: str, parser: str, tmp_path: Path) -> None:
    with running(kind, tmp_path, 48, parser) as target:
        harms = {
            name: harm
            for name, attack in ATTACKS.items()
            if (harm := attack(target, random.Random(17), FEW.get(name, 1)))
        }
    assert harms == {}
    assert "Traceback" not in target.printed.read_text()
