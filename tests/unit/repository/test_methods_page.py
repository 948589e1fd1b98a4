"""The table of retention methods: its rows, its figures by hand, and the page drawn from its lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from align.config.replay.draws import DRAWS
from align.retention import METHODS
from align.retention.mergers import MERGERS
from benchmarks.campaigns import append_result, load_results
from benchmarks.method_page import FOLDER, Line, lines_at, matched, page, put
from benchmarks.method_picture import draw, front_of
from benchmarks.method_rows import DEFAULT_ROW, ROWS
from benchmarks.methods import MethodRun, arguments, rounded, runs

SVG = "{http://www.w3.org/2000/svg}"


def test_every_registered_method_has_a_row() -> None:
    """A new method of `align.retention.METHODS`, or a merger, gets its row in `benchmarks.method_rows`."""
    assert {*METHODS, *MERGERS} - {row.method for row in ROWS.values()} == set()


def test_every_draw_has_a_row() -> None:
    """Balanced is that of the defaults."""
    assert DRAWS.keys() - {row.method.removeprefix("draw_") for row in ROWS.values()} == {
        "balanced"
    }


def run_of(row: str, **changes: Any) -> MethodRun:
    return MethodRun(
        **{
            "row": row,
            "lr": 1e-4,
            "order": "given",
            "seed": 0,
            "steps": 45,
            "items": 400,
            **changes,
        }
    )


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_campaign_of_as_many_rollouts(name: str, tmp_path: Path) -> None:
    configs = run_of(name).configs(tmp_path)
    budgets = [
        spec.steps * spec.sampling.budget * (1 if spec.merge is None else spec.merge.num_runs)
        for each in configs
        for spec in each.rounds
    ]
    assert sum(budgets) == 23_040
    assert all(each.gate.mode == "observe" for each in configs)
    suites = {suite.name: suite.prompts for suite in configs[0].suites}
    assert {"general", "heldout"} <= suites.keys()


def test_a_coarse_table_of_all_methods_comes_first() -> None:
    """One strength each under the first setting, before any other; references have one order."""
    planned = runs(arguments([]))
    assert len({run.key for run in planned}) == len(planned)
    first = [row.name for row in ROWS.values() if row.wave == 0]
    assert [run.row for run in planned[: len(first)]] == first
    head = [run for run in planned if (run.lr, run.seed, run.order) == (1e-4, 0, "given")]
    assert planned[: len(head)] == head and len(head) == len(ROWS)
    assert {run.order for run in planned if run.row in ("joint", "alone")} == {"given"}


def record(row: str, *, seed: int = 0, **figures: Any) -> dict[str, Any]:
    run = run_of(row, seed=seed)
    return {"key": run.key, "row": row, "lr": 1e-4, "order": "given", "seed": seed, "steps": 45,
            "items": 400, **figures}  # fmt: skip


def results(*records: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["key"]: each for each in records}


ALONE = record("alone", LA=0.9, N90={"rev": 1000.0, "sort": 2000.0})
JOINT = record("joint", AP=0.95, heldout=0.5, N90={"joint": None})
OURS = record(
    DEFAULT_ROW, AP=0.9, LA=0.92, BWT=-0.02, heldout=0.4, N90={"rev": 1500.0, "sort": 3000.0}
)


def line(row: str, *records: dict[str, Any]) -> Line:
    return Line(row=ROWS[row], records=records, results=results(ALONE, JOINT, OURS))


def test_figures_of_a_run_beside_its_references() -> None:
    ours, joint = line(DEFAULT_ROW, OURS), line("joint", JOINT)
    assert ours.mean("of joint") == pytest.approx(0.4 / 0.5)
    assert ours.mean("IM") == pytest.approx(0.95 - 0.92)
    assert ours.mean("N90") == pytest.approx((1500 + 3000) / 2)
    assert ours.mean("slower") == pytest.approx(3000 / 2000)  # The first round starts alone.
    assert joint.mean("N90") == 4 * 45 * 128  # It never reached .9: all its completions count.
    assert joint.mean("slower") is None and joint.mean("IM") is None
    other = record(DEFAULT_ROW, seed=1, AP=0.8, LA=0.8, BWT=-0.1, heldout=0.1)
    assert line(DEFAULT_ROW, OURS, other).mean("AP") == pytest.approx(0.85)
    assert line(DEFAULT_ROW, other).mean("of joint") is None  # No joint run of its seed.


def test_methods_are_compared_at_the_strength_that_learns_as_much() -> None:
    """Of naive and EWC's strengths: one learns .91 and keeps more, one keeps all and learns too little."""
    weak = record("ewc@lambda=100", AP=0.5, LA=0.95, BWT=-0.5)
    usual = record("ewc@lambda=1000", AP=0.7, LA=0.91, BWT=-0.2)
    strong = record("ewc@lambda=10000", AP=0.8, LA=0.8, BWT=0.0)
    rigid = record("l2_sp@alpha=10", AP=0.4, LA=0.4, BWT=0.0)
    lines = lines_at(1e-4, results(OURS, ALONE, JOINT, weak, usual, strong, rigid))
    able, unable = matched(lines)
    assert [each.row.name for each in able] == [DEFAULT_ROW, "ewc@lambda=1000"]
    assert [each.row.name for each in unable] == ["l2_sp@alpha=10"]
    text = page(results(OURS, record("gpm@energy=0.9", error="UserError: no layers")))
    assert "Not run yet at this rate" in text and "could not run: UserError: no layers" in text
    assert "Nothing has been run at this rate yet." in text


def test_lines_survive_a_break(tmp_path: Path) -> None:
    file = tmp_path / "methods.jsonl"
    append_result(file, {"key": "a", "AP": 0.5})
    file.write_text(file.read_text() + '{"key": "b", "A')
    append_result(
        file, {"key": "c", "AP": rounded(0.123456), "N90": rounded({"rev": float("nan")})}
    )
    assert load_results(file) == {
        "a": {"key": "a", "AP": 0.5}, "c": {"key": "c", "AP": 0.1235, "N90": {"rev": None}},
    }  # fmt: skip


def test_the_front_has_the_rows_that_none_beats() -> None:
    points = [(0.9, -0.5), (0.8, -0.1), (0.7, -0.2), (0.85, -0.1), (0.95, -0.6)]
    assert front_of(points) == [(0.85, -0.1), (0.9, -0.5), (0.95, -0.6)]
    naive = record("naive", AP=0.5, LA=0.98, BWT=-0.6)
    root = ElementTree.fromstring(draw(lines_at(1e-4, results(OURS, naive, JOINT, ALONE))))
    circles = [c for c in root.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
    assert len(circles) == 2  # References have no place between learning and keeping.
    places = {c.findtext(f"{SVG}title", "").split(":")[0]: c.attrib for c in circles}
    assert float(places["naive"]["cx"]) > float(places[DEFAULT_ROW]["cx"])
    assert float(places["naive"]["cy"]) > float(places[DEFAULT_ROW]["cy"])


def test_the_tables_and_the_picture_are_those_of_the_stored_lines() -> None:
    """Rows that were added and have not run yet change no table."""
    stored = load_results(FOLDER / "methods.jsonl")
    text = (FOLDER / "methods.md").read_text()
    drawn = text.partition("<!-- tables")[2]
    tables = [row for row in page(stored).splitlines() if row.startswith("|")]
    assert tables and [row for row in drawn.splitlines() if row.startswith("|")] == tables
    assert put(put(text, "one"), "two") == put(text, "two") != text
    assert (FOLDER / "methods.svg").read_text() == draw(lines_at(1e-4, stored))


def test_rows_whose_names_have_commas_can_be_selected() -> None:
    commas = [name for name in ROWS if "," in name]
    assert commas
    assert arguments(["--rows", ",".join(["naive", *commas])]).rows == ["naive", *commas]
