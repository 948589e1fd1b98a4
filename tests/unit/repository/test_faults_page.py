"""The table of faults: tries are counted, go on after a break, and the page is what its lines make it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.campaigns import load_results
from benchmarks.fault_trial import FaultOutcome, FaultTrial
from benchmarks.faults import BEGIN, END, PAGES, TRIALS, attempt, main, table, write_page


def odd(seed: int, folder: Path) -> FaultOutcome:
    """Lose in the second try, and break in the third."""
    assert list(folder.iterdir()) == []
    (folder / "left").touch()
    if seed == 2:
        raise OSError("gone")
    return FaultOutcome.lost("a row") if seed == 1 else FaultOutcome.kept("all rows")


def test_tries_are_counted_and_go_on_after_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = FaultTrial(tried="Rows.", tries=3, run=odd)
    monkeypatch.setattr(faults, "TRIALS", {"rows": trial})
    results = tmp_path / "results.jsonl"
    words = ["--folder", str(tmp_path / "work"), "--results", str(results)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    assert [line["sentence"] for line in load_results(results).values()] == [
        "all rows", "a row", "OSError: gone",
    ]  # fmt: skip
    # What survived leaves nothing behind, and what was lost leaves what there is to look at.
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["rows-1", "rows-2"]
    monkeypatch.setattr(
        faults, "TRIALS", {"rows": FaultTrial(tried="", tries=3, run=lambda *_: odd(0, Path(_[1])))}
    )
    capsys.readouterr()
    main(words)
    assert "rows 0" not in capsys.readouterr().out
    assert all(line["survived"] for line in load_results(results).values())


def test_the_table_counts_and_names_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = FaultTrial(tried="Rows are sent.", tries=3, run=odd)
    monkeypatch.setattr(faults, "TRIALS", {"rows": trial, "other": trial})
    lines = [attempt("rows", trial, seed, tmp_path) for seed in range(3)]
    parts = table(lines).split("\n\n")
    assert parts[0].splitlines()[2:] == ["| rows | 3 | 1 | 2 |"]
    assert parts[1] == "- **rows**: Rows are sent."
    assert parts[2].splitlines() == ["- `rows-1` lost: a row", "- `rows-2` lost: OSError: gone"]
    page = tmp_path / "faults.md"
    page.write_text(f"# Before\n\n{BEGIN}\n\nold\n\n{END}\n\nAfter\n")
    write_page(page, lines)
    assert page.read_text().startswith(f"# Before\n\n{BEGIN}\n\n| test |")
    assert page.read_text().endswith(f"{END}\n\nAfter\n")


def test_the_page_is_what_its_lines_make() -> None:
    lines = [*load_results(PAGES / "faults.jsonl").values()]
    text = (PAGES / "faults.md").read_text(encoding="utf-8")
    assert not lines or table(lines) in text
    assert {line["trial"] for line in lines} <= {*TRIALS}
    assert all(line["survived"] for line in lines)
