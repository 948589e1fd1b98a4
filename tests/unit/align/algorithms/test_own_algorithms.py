"""Algorithms of one's own: found by file, checked when the campaign is read, and run like any other."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.algorithms.own import load_own
from align.config.file import load_campaign
from rollouts.errors import UserError
from tests.unit.align.round.test_round import run
from tests.unit.campaigns import raw_campaign

MINE = '''
"""A GRPO whose advantages are scaled."""
from typing import Annotated
from pydantic import Field
from align.algorithms import GRPO

class Scaled(GRPO):
    """Group-relative advantages times a factor."""

    factor: Annotated[float, Field(gt=0)] = 1.0
    """What advantages are multiplied by."""

    def advantages(self, groups):
        return [
            [None if a is None else self.factor * a for a in row] for row in super().advantages(groups)
        ]
'''


def campaign(folder: Path, algorithm: Any, code: str = MINE) -> Path:
    (folder / "mine.py").write_text(code)
    raw = raw_campaign(folder)
    raw["rounds"] = [{**raw["rounds"][0], "algorithm": algorithm}]
    file = folder / "campaign.yaml"
    file.write_text(json.dumps(raw))
    return file


def test_it_is_validated_and_hashed(tmp_path: Path) -> None:
    file = campaign(tmp_path, {"name": "mine.py:Scaled", "factor": 2, "scale": "none"})
    config = load_campaign(file).config
    algorithm = config.rounds[0].algorithm
    assert (algorithm.factor, algorithm.scale) == (2.0, "none")  # type: ignore[attr-defined]
    stated = config.content()["rounds"][0]["algorithm"]
    assert stated["name"] == "mine.py:Scaled", "the same wherever the file lies"
    assert len(stated["code_sha256"]) == 64
    (tmp_path / "mine.py").write_text(MINE.replace("self.factor * a", "a"))
    assert load_campaign(file).config.hash() != config.hash()


WRONG = {
    "no such file": ("gone.py:Scaled", MINE, "there is no file"),
    "no such class": ("mine.py:Scalded", MINE, "did you mean 'Scaled'"),
    "no such module": ("no_such_pkg.mod:Loss", MINE, "cannot import 'no_such_pkg.mod'"),
    "no class": ("mine.py:thing", "thing = 1\n", "is no subclass of Algorithm"),
    "another class": ("mine.py:Other", "class Other: pass\n", "is no subclass of Algorithm"),
    "no loss": (
        "mine.py:Bare",
        "from align.algorithms import PolicyGradient\nclass Bare(PolicyGradient):\n    pass\n",
        "lacks advantages and loss",
    ),
    "no description": (
        "mine.py:Bare",
        "from align.algorithms import GRPO\nclass Bare(GRPO):\n    factor: float = 1.0\n",
        "the option 'factor' has no description",
    ),
    "a file that raises": ("mine.py:Scaled", "1 / 0\n", "ZeroDivisionError: division by zero"),
    "a wrong option": (
        {"name": "mine.py:Scaled", "factr": 2}, MINE, "unknown key; did you mean 'factor'",
    ),
    "a wrong value": ({"name": "mine.py:Scaled", "factor": -1}, MINE, "a number above 0"),
    "no name that is known": ("grppo", MINE, "did you mean 'grpo'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_when_the_campaign_is_read(kind: str, tmp_path: Path) -> None:
    algorithm, code, words = WRONG[kind]
    file = campaign(tmp_path, algorithm, code)
    with pytest.raises(UserError) as caught:
        load_campaign(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_it_learns_as_the_family_does(tmp_path: Path) -> None:
    ran = run(load_campaign(campaign(tmp_path, {"name": "mine.py:Scaled", "factor": 2})).config)
    (record,) = ran.evidence.ledger.rounds()
    assert record.state == "accepted"
    assert all(math.isfinite(step["loss/policy"]) for step in ran.metrics(0, "first"))
    # A changed file after the verdict is noticed, written down, and stands in nobody's way.
    file = campaign(tmp_path, {"name": "mine.py:Scaled", "factor": 2}, MINE + "\n# a remark\n")
    again = run(load_campaign(file).config)
    assert any("rounds.first.algorithm.code_sha256" in note for note in again.watcher.notes)


def test_it_travels_to_a_process_that_has_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path / 'mine.py'}:Scaled"
    algorithm = load_own(name).model_validate({"name": name, "factor": 3})
    sent = tmp_path / "sent.pickle"
    sent.write_bytes(pickle.dumps(algorithm))
    (tmp_path / "mine.py").unlink()
    script = (
        "import pickle, sys; a = pickle.load(open(sys.argv[1], 'rb')); "
        "print(type(a).__name__, a.factor, a.name, len(a.code_sha256))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(sent)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert told.stdout.split() == ["Scaled", "3.0", name, "64"]
    assert pickle.loads(sent.read_bytes()) == algorithm  # noqa: S301  (our own)
