"""Notebooks and scripts of the guide: each is run from its first line to its last, as a reader would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patient
from tests.unit.commands import blocks

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))

KERNEL = """
import json, linecache, sys

for number, cell in enumerate(json.load(sys.stdin)):
    file = f"<cell {number}>"  # As in a notebook, only Python's cache of lines has the source.
    linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
    exec(compile(cell, file, "exec"), globals())
"""
"""Program that runs the cells of a notebook in one process, in which no cell lies in a file."""


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(cells: list[str], folder: Path) -> Any:
    """Run cells in a process of their own; return what the last one prints as JSON."""
    printed = python(["-c", KERNEL], folder, json.dumps(cells))
    return json.loads(printed.splitlines()[-1])


def python(words: list[str], folder: Path, text: str = "") -> str:
    """Run Python in a process of its own and in a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        input=text,
        cwd=folder,
        env={
            **os.environ,
            "MPLBACKEND": "agg",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(folder / "user"),
        },
        capture_output=True,
        text=True,
        timeout=patient(240),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SEEN = """
print(json.dumps({
    "heavy": sorted({"ray", "vllm"} & sys.modules.keys()),
    "matrix": matrix.to_dict("index"),
    "curves": [len(axes.lines) for axes in figure.axes],
}))
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: str(path.stem))
def test_every_cell_runs(notebook: Path, tmp_path: Path) -> None:
    seen = run_cells([*code_of(notebook), SEEN], tmp_path)
    assert seen["heavy"] == [], "it needs neither vLLM nor Ray"
    assert list(seen["matrix"]) == ["base", "reverse", "sort"]
    base, *_, last = seen["matrix"].values()
    assert last["reverse"] > base["reverse"] + 0.1, "the reward of the reader's own was learned"
    assert last["general"] > 0.9
    assert seen["curves"] == [3, 2]


def test_notebooks_are_kept_without_what_they_printed() -> None:
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, cell["id"]


def test_the_script_of_the_guide_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "use-from-python.md").read_text()
    (script,) = [block for block in blocks(page) if block.title is not None]
    (tmp_path / str(script.title)).write_text(script.text)
    printed = python([str(script.title)], tmp_path)
    assert "reward polite: process (1 worker" in printed
    assert "polite step 2/2" in printed
    assert "polite: accepted" in printed
