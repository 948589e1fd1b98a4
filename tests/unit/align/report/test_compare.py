"""``keel status --json``, ``rounds show --json`` and ``keel compare``: values with a fixed schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.gate.evidence import Evidence
from align.report.compare import SeedSpread, compare
from align.report.summary_numbers import SUMMARY, Form
from align.round.times.record import AttemptTimes
from launch.commands.report import _cell
from tests.unit.decided import keel
from tests.unit.stores import BETTER, GOOD, HARMFUL, made


def file_of(evidence: Evidence, folder: Path) -> str:
    path = folder / "campaign.yaml"
    content = evidence.config.model_dump(mode="json", exclude_none=True)
    path.write_text(json.dumps({**content, "store": str(evidence.folder)}))
    return str(path)


@pytest.mark.parametrize(
    ("form", "mean", "spread", "text"),
    [
        (None, 0.5, 0.01, "0.500 ± 0.010"),
        ("change", 0.5, None, "+0.500"),
        ("score", 0.5, 0.01, "+0.500 ± 0.010"),
        ("count", 2304.4, 128.0, "2,304 ± 128"),
        ("ratio", 1.25, 0.2, "1.25 ± 0.20"),
    ],
)
def test_a_number_is_written_as_its_form_asks(
    form: Form | None, mean: float, spread: float | None, text: str
) -> None:
    assert _cell(SeedSpread(mean=mean, spread=spread, n=2), form) == text


def test_the_status_in_json(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD, HARMFUL)
    code, out, error = keel("status", file_of(evidence, tmp_path), "--json")
    assert code == 0, error
    status = json.loads(out)
    assert status.keys() == {
        "campaign", "seed", "store", "production", "decisions", "summary", "matrix", "rounds",
        "amendments", "window",
    }  # fmt: skip
    assert list(status["summary"]) == list(SUMMARY)
    base, first, second = status["matrix"]
    assert (base["round"], base["scores"]["general"]) == ("base", pytest.approx(50 / 60))
    assert (first["round"], first["accepted"]) == ("round0", True)
    assert (second["round"], second["accepted"]) == ("round1", False)
    assert first["scores"]["round0"] == pytest.approx(50 / 60)
    assert status["production"] == first["snapshot"]
    states = [(r["name"], r["state"], r["scores"].get("general")) for r in status["rounds"]]
    assert states == [
        ("round0", "accepted", pytest.approx(50 / 60)),
        ("round1", "rejected", pytest.approx(20 / 60)),
    ]
    assert status["rounds"][1]["reasons"]


def test_a_round_in_json_has_its_scores(tmp_path: Path) -> None:
    file = file_of(made(tmp_path, GOOD), tmp_path)
    shown = json.loads(keel("rounds", "show", file, "round0", "--json")[1])
    assert shown["scores"]["round0"] == pytest.approx(50 / 60)
    assert shown["parent_scores"]["round0"] == pytest.approx(10 / 60)


def seeded(folder: Path, seed: int, *scores: Any, **changes: Any) -> Evidence:
    folder.mkdir()
    return made(folder, *scores, seed=seed, **changes)


def test_campaigns_that_differ_in_their_seed_are_one_row(tmp_path: Path) -> None:
    # 50 and 44 of 60 pass: .8333 and .7333, mean .7833, sample standard deviation .1 / sqrt 2.
    runs = [
        ("a", seeded(tmp_path / "a", 0, GOOD)),
        ("b", seeded(tmp_path / "b", 1, {"round0": 44})),
        ("c", seeded(tmp_path / "c", 0, GOOD, BETTER)),
    ]
    found = compare(runs)
    assert [group.campaigns for group in found.groups] == [("a", "b"), ("c",)]
    assert found.groups[0].seeds == (0, 1)
    both = found.groups[0].scores["round0"]
    assert both is not None
    assert both.mean == pytest.approx(47 / 60)
    assert both.spread == pytest.approx(0.1 / 2**0.5)
    assert both.n == 2
    alone = found.groups[1].scores["round0"]
    assert alone is not None
    assert (alone.spread, alone.n) == (None, 1)
    assert found.groups[0].scores["round1"] is None, "only the other has this round"
    assert found.groups[1].accepted.mean + found.groups[1].rejected.mean == 2


def test_the_table_and_its_json(tmp_path: Path) -> None:
    files = []
    for name, seed, own in (("a", 0, 50), ("b", 1, 44)):
        evidence = seeded(tmp_path / name, seed, {"round0": own})
        files.append(file_of(evidence, tmp_path / name))
    code, out, error = keel("compare", *files)
    assert code == 0, error
    assert "0.783 ± 0.071" in out
    assert "0.833 ± 0.000" in out
    assert json.loads(keel("compare", *files, "--json")[1])["groups"][0]["seeds"] == [0, 1]
    assert CampaignConfig.model_validate(json.loads(Path(files[0]).read_text())).seed == 0


def test_production_and_refusals_come_before_the_table(tmp_path: Path) -> None:
    file = file_of(made(tmp_path, GOOD, HARMFUL), tmp_path)
    out = keel("compare", file)[1]
    lines = [line for line in out.splitlines() if line.startswith(f"{file}: ")]
    assert lines[0].startswith(f"{file}: Production is round 'round0' (")
    assert lines[1].startswith(f"{file}: round1 was refused: general lost 50.0 points")
    assert out.index(lines[1]) < out.index("Production of every campaign")
    answers = json.loads(keel("compare", file, "--json")[1])["answers"]
    assert answers[file]["round"] == "round0"
    assert [entry["round"] for entry in answers[file]["kept_out"]] == ["round1"]


def test_a_round_shown_says_where_its_time_went(tmp_path: Path) -> None:
    evidence = made(tmp_path, GOOD)
    times = AttemptTimes(seconds={"sampling": 6.0, "learning": 2.0})
    times.save(evidence.folder / "rounds/00-round0/attempt-1")
    file = file_of(evidence, tmp_path)
    assert (
        "  wall time 8 s: 6 s sampling, 2 s learning" in keel("rounds", "show", file, "round0")[1]
    )
    shown = json.loads(keel("rounds", "show", file, "round0", "--json")[1])["wall_time"]
    parts = {part["name"]: part["seconds"] for part in shown["parts"]}
    assert sum(parts.values()) == pytest.approx(shown["seconds"])
    assert (parts["sampling"], parts["learning"]) == (6.0, 2.0)
