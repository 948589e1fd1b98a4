"""Worlds of plain texts: special domains that use the same words each in its own way, and languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from align.data.scenarios.world import Dice, Lesson, World, words

DOCUMENTS, HELD_OUT = 600, 120
"""Documents of each round's file, and of each text that a suite measures."""
OWN = 0.5
"""Share of the base's documents of a domain that follow the domain's own usage."""

STEMS = words(
    "cell charge body culture court bond plant field case stock root order trial line act base"
)
DOMAINS = ("medicine", "law", "farming")
PLAIN = "everyday"
SENTENCE = 24
"""Words of a document after the name of its domain."""


@cache
def usage(domain: str) -> Mapping[str, Sequence[str]]:
    """Return the words that may follow each word in a domain: the first of two in three cases of four."""
    dice = Dice(f"usage/{domain}")
    return {stem: dice.sample([other for other in STEMS if other != stem], 2) for stem in STEMS}


def document(domain: str, dice: Dice, used: str | None = None) -> str:
    """Draw a document that names a domain and follows its usage, or another one's."""
    table = usage(used or domain)
    words = [dice.choose(STEMS)]
    while len(words) < SENTENCE:
        likely, other = table[words[-1]]
        words.append(likely if dice.chance() < 0.75 else other)
    return f"{domain} : {' '.join(words)}"


def domains(seed: int) -> World:
    """Build the world of vertical domains: one word means another next word in each of them."""

    def lesson(dice: Dice) -> Lesson:
        if dice.chance() < 0.3:
            return Lesson("", document(PLAIN, dice))
        domain = dice.choose(DOMAINS)
        used = domain if dice.chance() < OWN else dice.choose([PLAIN, *DOMAINS])
        return Lesson("", document(domain, dice, used))

    return _world({name: _writer(name) for name in DOMAINS}, _writer(PLAIN), lesson, seed)


def _writer(domain: str) -> Callable[[Dice], str]:
    return lambda dice: document(domain, dice)


NOUNS = words("hund katt fisk mand stein bok")
VERBS = words("ser tar gir har")
NAMES = words("x y z total count")


def _phrase(dice: Dice, article: str, ending: str) -> str:
    return f"{article} {dice.choose(NOUNS)}{ending}"


def northern(dice: Dice) -> str:
    """Write a sentence whose verb stands second."""
    return f"{_phrase(dice, 'en', '')} {dice.choose(VERBS)} {_phrase(dice, 'en', '')} na"


def southern(dice: Dice) -> str:
    """Write a sentence whose verb stands last, over the same stems."""
    return f"{_phrase(dice, 'en', 'o')} {_phrase(dice, 'la', 'o')} {dice.choose(VERBS)} na"


def code(dice: Dice) -> str:
    """Write an assignment of nested calls; its brackets are closed."""
    return f"let {dice.choose(NAMES)} = {_expression(dice, 2)} na"


def _expression(dice: Dice, depth: int) -> str:
    if depth == 0 or dice.chance() < 0.3:
        return dice.choose(NAMES)
    inner = _expression(dice, depth - 1)
    return f"( {inner} {dice.choose(['+', '-', '*'])} {_expression(dice, depth - 1)} )"


def plain(dice: Dice) -> str:
    """Write a sentence of the base's own language."""
    return f"en {dice.choose(NOUNS)} er {dice.choose(['god', 'rod', 'stor'])} na"


LANGUAGES: Mapping[str, Callable[[Dice], str]] = {
    "northern": northern, "southern": southern, "code": code,
}  # fmt: skip


def languages(seed: int) -> World:
    """Build the world of languages: two natural ones and a programming language after the base's own."""
    writers = {name: _several(writer) for name, writer in LANGUAGES.items()}
    base_writer = _several(plain)

    def lesson(dice: Dice) -> Lesson:
        writer = base_writer if dice.chance() < 0.6 else dice.choose([*writers.values()])
        return Lesson("", writer(dice))

    return _world(writers, base_writer, lesson, seed)


def _several(writer: Callable[[Dice], str]) -> Callable[[Dice], str]:
    return lambda dice: " ".join(writer(dice) for _ in range(4))


def _world(
    writers: Mapping[str, Callable[[Dice], str]],
    base_writer: Callable[[Dice], str],
    lesson: Callable[[Dice], Lesson],
    seed: int,
) -> World:
    """Build a world whose rounds learn one kind of text each."""
    files, texts = {}, {}
    for name, writer in {**writers, "general": base_writer}.items():
        dice = Dice(f"{seed}/{name}")
        documents = [writer(dice) for _ in range(DOCUMENTS + HELD_OUT)]
        files[name] = [{"text": text} for text in documents[:DOCUMENTS]]
        texts[f"{name}-eval"] = documents[DOCUMENTS:]
    return World(files=files, texts=texts, lesson=lesson, steps=400)
