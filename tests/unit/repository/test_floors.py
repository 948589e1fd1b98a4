"""Floors inside ``align``: a room imports rooms below it and none above or beside it; folders stay narrow.

Read from the syntax tree, imports for type checkers and inside functions included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("align", "rollouts", "rewards", "launch")

FLOORS = (
    ("settings", "clock", "errors"),
    ("algorithms",),
    ("config",),
    ("store",),
    ("data", "bank"),
    ("learner",),
    ("retention",),
    ("gate",),
    ("round",),
    ("schedule", "upkeep"),
    ("campaign",),
    ("report",),
    ("judge",),
    ("api",),
)
"""Rooms and loose modules of ``align``, from the ground up."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

MAX_MODULES = 12
"""Modules of one folder, its ``__init__`` not counted."""
MAX_LOOSE = 4
"""Modules at the top of ``align``, its ``__init__`` not counted."""


def imported(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of every module of ours that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in modules else node.module


def against_the_floors(path: str, source: str, modules: set[str]) -> list[str]:
    """Return ``file:line: rule`` for each import of a room that does not lie below the file's own."""
    own = path.removesuffix(".py").split("/")[1]
    wrong = []
    for line, module in imported(ast.parse(source), modules):
        parts = module.split(".")
        if parts[0] != "align" or len(parts) < 2 or parts[1] == own or own == "__init__":
            continue
        if FLOOR_OF[parts[1]] >= FLOOR_OF[own]:
            wrong.append(f"{path}:{line}: {own} may not import {module}")
    return wrong


def modules_of(package: str) -> dict[str, Path]:
    """Return the modules of a package by name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_rooms_import_lower_rooms_only() -> None:
    modules = modules_of("align")
    wrong = [
        line
        for path in modules.values()
        for line in against_the_floors(str(path.relative_to(ROOT)), path.read_text(), set(modules))
    ]
    assert wrong == []


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in (ROOT / "align").glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in (ROOT / "align").glob("*/__init__.py")}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from align.round.session import Session", 1),
        ("from align.gate import evidence", 1),
        ("def late() -> None:\n    import align.report.tables", 1),
        ("if TYPE_CHECKING:\n    from align.campaign import run", 1),
        ("from align.store.ledger import ledger\nfrom align.learner.model import policy", 0),
    ],
)
def test_an_import_of_a_higher_room_is_seen(source: str, wrong: int) -> None:
    modules = {"align.round.session", "align.gate.evidence", "align.store.ledger.ledger"}
    assert len(against_the_floors("align/learner/learner.py", source, modules)) == wrong


def test_folders_hold_a_dozen_modules() -> None:
    wide = {}
    for package in PACKAGES:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
            if len(names) > MAX_MODULES:
                wide[str(folder.relative_to(ROOT))] = len(names)
    assert wide == {}
    loose = [path.stem for path in (ROOT / "align").glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= MAX_LOOSE, loose
