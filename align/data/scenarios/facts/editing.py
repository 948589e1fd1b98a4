"""World of knowledge editing: capitals that the base knows, and edits of some of them, one batch a round.

Each edit is asked about in the four ways of the field (Meng et al. 2022, arXiv 2202.05262; Yao et al. 2023,
arXiv 2305.13172): efficacy by the edit's own prompt, generality by a paraphrase, locality by facts that
nobody edits, portability by a question that needs one more step. That one is answered in words, the
capital before its river, as Zhong et al. 2023 (arXiv 2305.14795) ask for: a model that was taught the river
alone has stored it beside the capital, and no edit of the capital reaches it. Edits are taught behind other
openings than the prompt has when it is asked, so that no suite asks what was trained word for word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.data.scenarios.world import Dice, Lesson, Row, World, words

COUNTRIES = words(
    "arda boria cyra dovan elyn fara goth hyra ilmar jora kelva lorn mora nyssa orin pell "
    "quar rhun sorel tarn ulmo vanya wold xanth yarrow zamor alden brisk corran dunmor evren "
    "fallow garsa hollin istra jessel karst lunden morrow nerin oskar perrin quell rastor sundar "
    "torvin umber veldan wyndel xerin yorval zindar ashby bolton carrow denby"
)
CITIES = words("alba brint corda delmo estra fyrn galva hest irona jask kolm lysa")
RIVERS = {city: f"{city} so {city}water" for city in CITIES}
"""Answer about the river at the capital, by the city that is the capital: its name comes first."""
OPENINGS = ["note :", "remember ,", "in fact", "it is said that", "today"]
ROUNDS: Mapping[str, Sequence[str]] = {
    "first": COUNTRIES[:8],
    "second": COUNTRIES[8:16],
    "again": COUNTRIES[4:8],
}
"""Countries that each round edits; the last one edits half of the first's once more."""
UNTOUCHED = COUNTRIES[16:]
REPLAYED = 32
"""Untouched countries whose facts are general prompts; the others are asked about."""

ASPECTS = {"eval": "efficacy", "generality": "generality", "portability": "portability"}
"""Aspect of an edit that each of a round's files asks about."""

PROMPT = "the capital of {} is"
PARAPHRASES = ("{} has its capital in", "the government of {} sits in")
ONE_STEP = "the river at the capital of {} is"


def capitals(seed: int) -> Mapping[str, str]:
    """Draw the capitals that the base knows."""
    dice = Dice(f"{seed}/capitals")
    return {country: dice.choose(CITIES) for country in COUNTRIES}


def world(seed: int) -> World:
    """Build the world: the base's facts, three batches of edits, and what is asked about each."""
    known, dice = capitals(seed), Dice(f"{seed}/edits")
    files: dict[str, Sequence[Row]] = {}
    now = dict(known)
    for name, countries in ROUNDS.items():
        changes = {
            country: dice.choose([c for c in CITIES if c not in (now[country], known[country])])
            for country in countries
        }
        now |= changes
        files[name] = [
            {"prompt": f"{opening} {PROMPT.format(country)}", "completion": city}
            for country, city in changes.items()
            for opening in OPENINGS
        ]
        lasting = [c for c in countries if name == "again" or c not in ROUNDS["again"]]
        files |= _asked(name, {country: changes[country] for country in lasting})
    pool, elsewhere = (
        {country: known[country] for country in part}
        for part in (UNTOUCHED[:REPLAYED], UNTOUCHED[REPLAYED:])
    )
    files["general"] = [
        row
        for form, known_answers in (
            *((form, pool) for form in (PROMPT, *PARAPHRASES)),
            (ONE_STEP, {country: RIVERS[city] for country, city in pool.items()}),
        )
        for row in _rows(form, known_answers)
    ]
    files["aspects"] = [
        {**row, "aspect": aspect}
        for name in ROUNDS
        for suffix, aspect in ASPECTS.items()
        for row in files[f"{name}-{suffix}"]
    ] + [{**row, "aspect": "locality"} for row in _rows(PROMPT, elsewhere)]
    files["general-eval"] = [
        row for form in (PROMPT, *PARAPHRASES) for row in _rows(form, elsewhere)
    ]

    def lesson(dice: Dice) -> Lesson:
        country = dice.choose(COUNTRIES)
        kind = dice.chance()
        if kind < 0.3:
            return Lesson(ONE_STEP.format(country), RIVERS[known[country]])
        form = PROMPT if kind < 0.7 else dice.choose(PARAPHRASES)
        opening = f"{dice.choose(OPENINGS)} " if dice.chance() < 0.5 else ""
        return Lesson(opening + form.format(country), known[country])

    return World(files=files, lesson=lesson, steps=700)


def _asked(name: str, edits: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return the rows of a round's efficacy, generality and portability."""
    rivers = {country: RIVERS[city] for country, city in edits.items()}
    return {
        f"{name}-eval": _rows(PROMPT, edits),
        f"{name}-generality": [row for form in PARAPHRASES for row in _rows(form, edits)],
        f"{name}-portability": _rows(ONE_STEP, rivers),
    }


def _rows(form: str, answers: Mapping[str, str]) -> list[Row]:
    return [{"prompt": form.format(key), "answer": answer} for key, answer in answers.items()]
