"""Answers before the first round and now: of accepted rounds in turn, drawn without choosing."""

from __future__ import annotations

from pathlib import Path

from align.gate.evidence import Evidence
from align.report.before_after import answer_lines, before_and_after, prompt_words
from tests.unit.decided import FIRST, decided
from tests.unit.ledgers import BASE
from tests.unit.stores import add_answers


def answered(folder: Path, says: str = "\nsaid so") -> Evidence:
    """One accepted round, whose suite's answers are stored of the base and of its candidate."""
    evidence = decided(folder, rounds=1)
    for record in evidence.ledger.evaluations():
        if record.suite == "first" and record.snapshot in (BASE.id, FIRST.id):
            name = "base" if record.snapshot == BASE.id else "first"
            prompt = '[{"role": "user", "content": "Say it"}]'
            add_answers(evidence, record.path, prompt, f"{name}{says}")
    return evidence


def test_three_items_of_the_accepted_round(tmp_path: Path) -> None:
    evidence = answered(tmp_path)
    shown = before_and_after(evidence)
    assert [one.suite for one in shown] == ["first"] * 3
    assert len({one.item.id for one in shown}) == 3
    assert shown == before_and_after(evidence), "the same items every time"
    lines = [line.plain for line in answer_lines(evidence)]
    assert lines[1] == "  first: Say it"
    assert lines[2].startswith("    before   0.00  base said so") and "first said so" in lines[3]


def test_an_answer_gives_a_terminal_no_orders(tmp_path: Path) -> None:
    lines = [line.plain for line in answer_lines(answered(tmp_path, "\x1b]0;title\x07\x9b2J"))]
    assert lines[3].endswith("first\\x1b]0;title\\x07\\x9b2J")
    assert all(line.lstrip("\n").isprintable() for line in lines)


def test_nothing_where_no_answers_are_stored_or_no_round_was_accepted(tmp_path: Path) -> None:
    assert list(answer_lines(decided(tmp_path / "plain", rounds=1))) == []
    assert list(answer_lines(decided(tmp_path / "none", rounds=0))) == []


def test_prompts_of_messages_are_their_last_words() -> None:
    assert prompt_words("plain {text}") == "plain {text}"
    assert (
        prompt_words('[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]')
        == "b"
    )
    for text in ("[1, 2]", "7", "[" * 100_000):
        assert prompt_words(text) == text
