"""The shipped base can be rebuilt from its seed, with the same skills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.data.demo import BASE_MODEL
from align.data.demo.world import GENERAL, OPS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_base_is_rebuilt_from_its_seed(tmp_path: Path) -> None:
    from align.data.demo.base import build

    steps: list[int] = []
    shipped = json.loads((BASE_MODEL / "skills.json").read_text(encoding="utf-8"))
    skills = build(
        tmp_path,
        seed=shipped["settings"]["seed"],
        steps=shipped["settings"]["steps"],
        progress=lambda step, loss: steps.append(step),
    )
    assert all(0.30 <= skills[op] <= 0.40 for op in OPS), skills
    assert all(skills[skill] >= 0.98 for skill in GENERAL), skills
    assert steps == list(range(1, shipped["settings"]["steps"] + 1))
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in BASE_MODEL.iterdir()}
