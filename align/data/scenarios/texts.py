"""Worlds of plain texts: special domains that use the same words each in its own way, and languages."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from align.data.scenarios.world import Dice, Lesson, Row, World, words

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
WORD = re.compile(r"[a-z]+|[0-9]|[.,!?$%=+*/-]")


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


PARTS = {
    "news": "continual/agnews_{}.jsonl",
    "reviews": "continual/amazon_{}.jsonl",
    "problems": "evals/gsm8k/{}.jsonl",
}
"""Files of real domains below a folder, by split."""
STORIES = "text/tinystories_valid_30k.txt"
READ = 300
"""Documents of each real domain that the base has read."""
STORY = 32
"""Words of a part of the stories, of which those that are not kept are left out."""
VOCABULARY = 1500
"""Different words that are kept of real texts: the most frequent."""


def real_domains(folder: Path, seed: int) -> World | None:
    """Build the world of real domains: news, product reviews and arithmetic problems, after stories.

    Texts are words in lower case. The base has read the stories, and some of each domain. None where a
    folder does not have the files.
    """
    splits = {
        "news": ("train", "test"),
        "reviews": ("train", "test"),
        "problems": ("train_2000", "test"),
    }
    paths = {
        (name, split): folder / PARTS[name].format(file)
        for name, files in splits.items() for split, file in zip(("train", "test"), files, strict=True)
    }  # fmt: skip
    stories = folder / STORIES
    if not all(path.is_file() for path in (*paths.values(), stories)):
        return None
    lines = {key: path.read_text(encoding="utf-8").splitlines() for key, path in paths.items()}
    parts = {key: [real_words(json.loads(line)) for line in rows] for key, rows in lines.items()}
    story_words = real_words({"text": stories.read_text(encoding="utf-8")})
    parts["general", "all"] = [
        story_words[i : i + STORY] for i in range(0, len(story_words), STORY)
    ]
    counts = Counter(word for rows in parts.values() for text in rows for word in text)
    known = {word for word, _ in counts.most_common(VOCABULARY)}
    texts = {
        key: [" ".join(frequent) for text in Dice(f"{seed}/{key}").shuffled(rows)
              if len(frequent := [word for word in text if word in known][:SENTENCE]) == SENTENCE]
        for key, rows in parts.items()
    }  # fmt: skip
    general = texts.pop(("general", "all"))
    num_held, names = len(general) // 4, [*PARTS]
    files = {name: [{"text": t} for t in texts[name, "train"][:DOCUMENTS]] for name in names}
    files["general"] = [{"text": text} for text in general[num_held:]]
    measured = {f"{name}-eval": texts[name, "test"][:HELD_OUT] for name in names}
    read = {name: texts[name, "train"][-READ:] for name in names}
    measured |= {f"{name}-read": documents for name, documents in read.items()}

    def lesson(dice: Dice) -> Lesson:
        part = general[num_held:] if dice.chance() < 0.5 else read[dice.choose(names)]
        return Lesson("", dice.choose(part))

    return World(
        files=files,
        texts={**measured, "general-eval": general[:num_held]},
        lesson=lesson,
        steps=400,
    )


def real_words(row: Row) -> list[str]:
    """List the words and marks of a row's texts in lower case."""
    text = f"{row['question']} {row['answer']}" if "question" in row else row["text"]
    return WORD.findall(
        re.sub(r"<<.*?>>", "", text.replace("Title:", "").replace("Text:", "")).lower()
    )


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
