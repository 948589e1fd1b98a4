"""Only `align.store` spells the paths of a store and knows of the copy behind its URL."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from align.store.paths import InboxPaths, StorePaths
from align.store.run_folder import CHECKPOINT, RoundFolder, RunFolder, checkpoint_at
from benchmarks.house import ROOT, Source, read_sources

ROOM = "align/store/"
LOCATION = "align/config/store.py"
"""File of the settings that say where a store lies, and so name its ledger."""
JOINS = {"Path", "glob", "rglob", "joinpath", "with_name"}
"""Calls whose arguments are paths."""


def _names() -> Iterator[str]:
    """Yield the names that a store's paths are made of, as the store spells them; numbered ones up to the
    number."""
    store = StorePaths(Path())
    yield from (*store.overlaps.parts, *store.repeats("s", "s")[0].parts[:-1], CHECKPOINT)
    yield from (*store.rival_answers("s", "s").parts[:-1], *store.reference("s", "s").parts[:-1])
    for folder in (store, InboxPaths(Path()), RunFolder(Path())):
        for name, value in vars(type(folder)).items():
            if isinstance(value, property):
                path = getattr(folder, name)
                yield path.name if isinstance(path, Path) else path.folder.name
    yield store.general_answers("").stem
    yield RunFolder(Path()).table(0).parent.name
    yield RoundFolder(Path()).checkpoints().name
    yield RoundFolder(Path()).attempt(1).path.name.rstrip("1")
    yield checkpoint_at(Path(), 0).name.rstrip("0")


NAMES = frozenset(_names())


def _texts(node: ast.expr) -> Iterator[str]:
    """Yield the literal parts of a string; those of an f-string up to what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        yield from (text for value in node.values for text in _texts(value))


def spelt_paths(source: Source) -> list[str]:
    """Find the literals that stand where paths are joined and name a part of a store."""
    operands: list[ast.expr] = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands += [node.left, node.right]
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            operands += node.args if called in JOINS else []
    return [
        f"{source.path}:{operand.lineno}: {text}"
        for operand in operands
        for text in _texts(operand)
        if any(part.rstrip("*") in NAMES for part in text.split("/"))
    ]


def mirrored_by_hand(source: Source) -> list[str]:
    """Find imports of the copy behind a URL."""
    modules = ("align.store.mirror", "align.store.remote")
    return [
        f"{source.path}:{node.lineno}: {node.module}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module in modules
    ]


def test_paths_of_a_store_are_spelt_by_the_store() -> None:
    sources = [s for s in read_sources(ROOT) if not s.path.startswith((ROOM, LOCATION))]
    wrong = [line for source in sources for line in spelt_paths(source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_nobody_else_copies_a_store_to_its_url() -> None:
    sources = [s for s in read_sources(ROOT) if not s.path.startswith(ROOM)]
    wrong = [line for source in sources for line in mirrored_by_hand(source)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('folder / "rounds" / name', "rounds"),
        ('folder / f"attempt-{number}"', "attempt-"),
        ('folder.glob("rounds/*/metrics.jsonl")', "rounds/*/metrics.jsonl"),
        ('Path("evaluations") / name', "evaluations"),
        ('folder.glob("ledger.db*")', "ledger.db*"),
        ('store / "inbox/drop"', "inbox/drop"),
        ('folder / f"step-{step:04d}.parquet"', "step-"),
    ],
)
def test_a_path_is_found_however_it_is_spelt(code: str, text: str) -> None:
    assert spelt_paths(Source.parse("a.py", code)) == [f"a.py:1: {text}"]


@pytest.mark.parametrize(
    "code", ['content["rounds"]', 'folder / "config.json"', 'x = "rounds/"', "a / b"]
)
def test_other_texts_are_no_paths_of_a_store(code: str) -> None:
    assert spelt_paths(Source.parse("a.py", code)) == []


def test_mirroring_by_hand_is_found() -> None:
    source = Source.parse("a.py", "from align.store.mirror import Mirror")
    assert mirrored_by_hand(source) == ["a.py:1: align.store.mirror"]
