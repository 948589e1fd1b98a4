"""World of facts that change with time: who holds which office in each year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.data.scenarios.world import Dice, Lesson, Row, World, words

TOWNS = words("arda boria cyra dovan elyn fara goth hyra ilmar jora kelva lorn")
YEARS = ("2021", "2022", "2023")
KNOWN = "2020"
"""Year whose holders the base knows."""
OFFICES = ("mayor", "judge")
HOLDERS = words("adams baker carter davis evans foster grant hughes irwin jones kent lewis")
CHANGED = 0.75
"""Share of offices that change hands from one year to the next."""

Fact = tuple[str, str]
"""Office and town."""


def holders(seed: int) -> Mapping[str, Mapping[Fact, str]]:
    """Draw who holds each office in each year, the known one first."""
    dice = Dice(f"{seed}/holders")
    offices = [(office, town) for office in OFFICES for town in TOWNS]
    now = {fact: dice.choose(HOLDERS) for fact in offices}
    years: dict[str, dict[Fact, str]] = {KNOWN: now}
    for year in YEARS:
        years[year] = now = {
            fact: dice.choose([other for other in HOLDERS if other != name])
            if dice.chance() < CHANGED
            else name
            for fact, name in now.items()
        }
    return years


def world(seed: int) -> World:
    """Build the world of the years: what was true in a year stays true of that year.

    The base knows the holders of the year before and guesses those of later years; what rivers towns lie at
    it knows.
    """
    years = holders(seed)
    rivers = {town: f"{town}water" for town in TOWNS}
    files: dict[str, Sequence[Row]] = {}
    for year in YEARS:
        facts, dice = years[year], Dice(f"{seed}/{year}")
        files[year] = [{"text": _news(year, facts, dice)} for _ in range(600)]
        files[f"{year}-eval"] = [
            {"prompt": f"in {year} the {office} of {town} was", "answer": name}
            for (office, town), name in facts.items()
        ]
    general = [{"prompt": f"the river of {town} is", "answer": rivers[town]} for town in TOWNS]
    files |= {"general": general, "general-eval": [
        {"prompt": f"in {year} the river of {town} was", "answer": rivers[town]}
        for year in YEARS for town in TOWNS
    ]}  # fmt: skip

    def lesson(dice: Dice) -> Lesson:
        town = dice.choose(TOWNS)
        if dice.chance() < 0.3:
            start = dice.choose([f"in {dice.choose(YEARS)} the river of {town} was",
                                 f"the river of {town} is"])  # fmt: skip
            return Lesson(start, rivers[town])
        office, year = dice.choose(OFFICES), KNOWN if dice.chance() < 0.5 else dice.choose(YEARS)
        name = years[year][office, town] if year == KNOWN else dice.choose(HOLDERS)
        return Lesson(f"in {year} the {office} of {town} was", name)

    return World(files=files, lesson=lesson, steps=600)


def _news(year: str, facts: Mapping[Fact, str], dice: Dice) -> str:
    """Write a document of two facts of a year."""
    chosen = dice.sample([*facts], 2)
    return " ".join(f"in {year} the {o} of {t} was {facts[o, t]} ." for o, t in chosen)
