"""`benchmarks.house` on sources written by hand, and the rules of names and sentences that it measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.house import (
    COMMAND_TO_LOSS,
    ROOT,
    Call,
    Finding,
    Source,
    broken_calls,
    docstrings,
    empty_locals,
    folder_widths,
    fragments,
    function_lengths,
    helpers_used_once,
    listing,
    read_sources,
    shared_class_names,
    table,
    typed_parameters,
    verbless,
)

SENTENCES = Source.parse(
    "align/a.py",
    '''"""Of a module."""
LIMIT = 3
"""Largest number of rows."""
FIRST, SECOND = 1, 2
"""Whether two names are one field."""


class Shelf:
    """Models that are served."""

    name: str
    """Whose it is."""
    "plain text below text is no field's"

    @property
    def size(self) -> int:
        """The number of models."""
        return 1

    def take(self) -> None:
        """In
        place."""
        "no docstring"

    async def add(self) -> None:
        """The model is added."""


def f():
    x = 1
    """No field: it is in a function."""
''',
)


def test_docstrings_are_those_of_modules_classes_functions_and_fields() -> None:
    assert [(d.line, d.kind, d.name) for d in docstrings(SENTENCES)] == [
        (1, "module", ""),
        (3, "field", "LIMIT"),
        (5, "field", "(FIRST, SECOND)"),
        (9, "class", "Shelf"),
        (12, "field", "name"),
        (17, "property", "size"),
        (21, "function", "take"),
        (26, "function", "add"),
    ]


def test_a_fragment_opens_with_a_word_that_leans_on_the_line_above() -> None:
    assert list(map(str, fragments(SENTENCES))) == [
        "align/a.py:1: module : Of a module.",
        "align/a.py:5: field (FIRST, SECOND): Whether two names are one field.",
        "align/a.py:12: field name: Whose it is.",
        "align/a.py:21: function take: In",
    ]


def test_a_function_begins_with_a_verb_and_a_property_with_a_noun() -> None:
    assert [finding.line for finding in verbless(SENTENCES)] == [21, 26]


def test_empty_locals_are_bindings_and_not_uses() -> None:
    source = Source.parse(
        "a.py",
        "def f(told, *held):\n"
        "    found = told\n"
        "    for one, row in found:\n"
        "        self.found = foundation = one\n"
        "    return [thing for thing in row if (asked := thing)]\n"
        "class Row:\n"
        "    place: str\n",
    )
    assert [(x.line, x.name) for x in empty_locals(source)] == [
        (1, "held"), (1, "told"), (2, "found"), (3, "one"), (5, "asked"), (5, "thing"),
    ]  # fmt: skip


def test_a_helper_is_used_once_where_its_file_mentions_it_once() -> None:
    source = Source.parse(
        "a.py",
        "class A:\n"
        "    def _once(self): return self._twice() + self._twice()\n"
        "    def _twice(self): return self._once()\n"
        "    def __len__(self): return 1\n"
        "    def public(self): return _passed\n"
        "def _never(): pass\n"
        "def _passed(): pass\n",
    )
    assert [(x.line, x.name) for x in helpers_used_once(source)] == [(7, "_passed"), (2, "_once")]


def test_names_are_shared_across_files_and_private_classes_are_not_counted() -> None:
    shared = shared_class_names(
        [
            Source.parse("a.py", "class Row: pass\nclass _Node: pass"),
            Source.parse("b.py", "class Batch:\n    class Row: pass\nclass _Node: pass"),
        ]
    )
    assert {name: list(map(str, classes)) for name, classes in shared.items()} == {
        "Row": ["a.py:1: Row", "b.py:2: Row"]
    }


def test_a_folder_is_as_wide_as_its_own_modules() -> None:
    paths = ["align/__init__.py", "align/a.py", "align/b.py", "align/gate/c.py"]
    assert folder_widths(Source.parse(path, "") for path in paths) == {"align": 2, "align/gate": 1}


def test_lengths_and_annotations_are_counted_by_function() -> None:
    source = Source.parse(
        "a.py",
        "def f(self, a, /, b: int, *c, d: int = 1, **e: int):\n    def g(x): pass\n    g(1)\n",
    )
    assert sorted(function_lengths(source)) == [1, 3]
    assert typed_parameters(source) == (3, 6)


def test_a_list_of_calls_is_checked_against_the_source() -> None:
    sources = [
        Source.parse("a.py", "def first():\n    return B().second(1)\n"),
        Source.parse("b.py", "class B:\n    def second(self, x): return third\n"),
    ]
    right = [
        Call(path="a.py", function="first", calls="second"),
        Call(path="b.py", function="B.second", calls=""),
    ]
    assert broken_calls(right, sources) == []
    wrong = [
        Call(path="a.py", function="first", calls="third"),
        Call(path="b.py", function="second", calls=""),
    ]
    assert broken_calls(wrong, sources) == [
        "a.py: first does not mention third",
        "b.py has no function second",
    ]


def test_the_way_from_the_command_to_the_loss_is_the_one_that_is_listed() -> None:
    assert broken_calls(COMMAND_TO_LOSS, house()) == []
    for call, after in pairwise(COMMAND_TO_LOSS):
        # A round finds its kind of runner through a table.
        name = after.function.rpartition(".")[2]
        assert call.calls == name or call.calls == "runner_of"


def test_the_way_from_the_command_to_the_loss_is_short() -> None:
    assert len(COMMAND_TO_LOSS) - 1 <= 8
    assert len({call.path for call in COMMAND_TO_LOSS}) <= 6


def test_the_way_to_the_loss_is_written_down() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    steps = [f"{call.function}  {call.path}" for call in COMMAND_TO_LOSS]
    _, _, listed = page.partition("## From the command to the loss")
    assert [" ".join(line.split()) for line in listed.split("```")[1].splitlines()[1:]] == [
        " ".join(step.split()) for step in steps
    ]


def test_the_table_of_a_small_house(tmp_path: Path) -> None:
    for package in ("align", "rollouts", "rewards", "launch", "tests"):
        (tmp_path / package).mkdir()
    (tmp_path / "README.md").write_text("12345")
    (tmp_path / "align" / "a.py").write_text("def f(one: int):\n    return one\n\n\n")
    (tmp_path / "launch" / "b.py").write_text('def g(x):\n    """Whose."""\n')
    (tmp_path / "tests" / "t.py").write_text("1\n2\n3\n")
    rows = dict(table(tmp_path))
    assert rows["files / lines"] == "2 / 6"
    assert rows["typed parameters"] == "50%"
    assert rows["test lines / source lines"] == "0.50"
    assert rows["docstrings that open as fragments"] == "100.0% of 1"
    assert rows["empty locals per 1,000 lines"] == "166.7"
    assert rows["README bytes"] == "5"


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("fragments", ["a.py:6: class A: Of."]),
        ("verbless", ["a.py:2: function _f: The."]),
        ("locals", ["a.py:1: one"]),
        ("helpers", []),
        ("names", ["a.py:5: A", "b.py:1: A"]),
        ("folders", ["./: 2"]),
    ],
)
def test_a_list_says_where(what: str, lines: list[str]) -> None:
    source = Source.parse("a.py", 'def _f(one):\n    """The."""\n\n\nclass A:\n    """Of."""\n')
    assert listing(what, [source, Source.parse("b.py", "class A: _f(1)\n")]) == lines


@cache
def house() -> list[Source]:
    """Parse the four packages, once for all tests."""
    return read_sources(ROOT)


@pytest.mark.parametrize("rule", [fragments, verbless, empty_locals])
def test_docstrings_are_sentences_and_locals_say_what_they_hold(
    rule: Callable[[Source], list[Finding]],
) -> None:
    wrong = [str(finding) for source in house() for finding in rule(source)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_class_name_comes_twice() -> None:
    assert not shared_class_names(house())
