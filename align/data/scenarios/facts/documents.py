"""World of outside knowledge: who holds an office now, learnt into the weights or read from documents.

Every year some offices change hands, and the newest holder is asked for by the same words as the last one.
The base answers from a document if one stands before the question, and guesses without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.data.scenarios.facts.temporal import HOLDERS, OFFICES, TOWNS, YEARS, Fact
from align.data.scenarios.world import Dice, Lesson, Row, World, words

OPENINGS = ("today", "as is known ,", "in short", "by now")
ORDERS = ("echo", "turn")
COLOURS = words("red blue green black white grey brown pink")
CHANGES = 8
"""Offices that change hands in each year after the first, which fills all of them."""


def changes(seed: int) -> Mapping[str, Mapping[Fact, str]]:
    """Draw the offices that change hands in each year, with their new holders."""
    dice = Dice(f"{seed}/changes")
    offices = [(office, town) for office in OFFICES for town in TOWNS]
    now: dict[Fact, str] = {}
    years = {}
    for year in YEARS:
        changed = dice.sample(offices, CHANGES) if now else offices
        years[year] = {
            fact: dice.choose([name for name in HOLDERS if name != now.get(fact)])
            for fact in changed
        }
        now |= years[year]
    return years


def world(seed: int) -> World:
    """Build the world: each year's documents, the same facts as demonstrations, and what still holds."""
    years = changes(seed)
    newest = {fact: name for facts in years.values() for fact, name in facts.items()}
    files: dict[str, Sequence[Row]] = {}
    for year, facts in years.items():
        files[year] = [
            {"prompt": f"{opening} {asked(fact)}", "completion": name, "answer": name}
            for fact, name in facts.items()
            for opening in OPENINGS
        ]
        files[f"{year}-documents"] = [
            {"key": "/".join(fact), "text": f"{asked(fact)} {name} ."}
            for fact, name in facts.items()
        ]
        later = {fact for other in YEARS if other > year for fact in years[other]}
        files[f"{year}-eval"] = [
            {"prompt": asked(fact), "answer": newest[fact]} for fact in facts if fact not in later
        ]
    pairs = Dice(f"{seed}/colours").shuffled((a, b) for a in COLOURS for b in COLOURS)
    for name, part in (("general", pairs[:32]), ("general-eval", pairs[32:])):
        files[name] = [
            {"prompt": f"{order} {' '.join(pair)} =", "answer": _ordered(order, pair)}
            for order in ORDERS for pair in part
        ]  # fmt: skip
    return World(files=files, lesson=_lesson, steps=600)


def asked(fact: Fact) -> str:
    """Write the question for an office's holder."""
    office, town = fact
    return f"the {office} of {town} is"


def _ordered(order: str, pair: tuple[str, str]) -> str:
    return " ".join(pair if order == "echo" else pair[::-1])


def _lesson(dice: Dice) -> Lesson:
    kind = dice.chance()
    if kind < 0.3:
        order, pair = dice.choose(ORDERS), (dice.choose(COLOURS), dice.choose(COLOURS))
        return Lesson(f"{order} {' '.join(pair)} =", _ordered(order, pair))
    fact, name = (dice.choose(OFFICES), dice.choose(TOWNS)), dice.choose(HOLDERS)
    opening = f"{dice.choose(OPENINGS)} " if dice.chance() < 0.5 else ""
    document = f"{asked(fact)} {name} . " if kind < 0.8 else ""
    return Lesson(f"{document}{opening}{asked(fact)}", name)
