"""World of alignment: preferences of how to answer, two that go together and one that conflicts.

A reply has an opening, a body and a close. Readers prefer a polite opening; then thanks at the close, which
goes together with it; then experts prefer a plain opening, against the first round, and nobody else does.
The base opens and closes either way, and answers a machine without both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.data.scenarios.world import Dice, Lesson, Row, World, split_of, words

SPEAKERS = ("guest", "child", "clerk", "farmer")
EXPERTS = ("pilot", "nurse")
"""Speakers whose preference the last round turns round."""
MACHINE = "machine"
ACTIONS = words("open close move count paint lift wash fold carry check")
OBJECTS = words("door box lamp table wheel sail coat net chair rope bell crate")
OPENINGS, CLOSES = ("please", "hey"), ("thanks", "bye")
EVAL_ROWS = 40


def world(seed: int) -> World:
    """Build the world of preferences."""
    everyone = (*SPEAKERS, *EXPERTS)
    files: dict[str, Sequence[Row]] = {
        "polite": _pairs(everyone, 0, OPENINGS, seed),
        "thanks": _pairs(everyone, 2, CLOSES, seed),
        "plain": _pairs(EXPERTS, 0, OPENINGS[::-1], seed),
    }
    for name, speakers in (("polite", SPEAKERS), ("thanks", everyone), ("plain", EXPERTS)):
        files[f"{name}-eval"] = [
            {"prompt": f"{speaker} : {body} ="}
            for speaker in speakers for body in _bodies("eval", seed)
        ]  # fmt: skip
    for name, split in (("general", "train"), ("general-eval", "eval")):
        files[name] = [
            {"prompt": f"{MACHINE} : {body} =", "answer": body} for body in _bodies(split, seed)
        ]
    return World(files=files, lesson=_lesson, steps=400)


def _lesson(dice: Dice) -> Lesson:
    body = f"{dice.choose(ACTIONS)} {dice.choose(OBJECTS)}"
    if dice.chance() < 0.3:
        return Lesson(f"{MACHINE} : {body} =", body)
    reply = f"{dice.choose(OPENINGS)} {body} {dice.choose(CLOSES)}"
    return Lesson(f"{dice.choose([*SPEAKERS, *EXPERTS])} : {body} =", reply)


def _bodies(split: str, seed: int) -> list[str]:
    """List the requests of a split in random order."""
    bodies = (f"{action} {noun}" for action in ACTIONS for noun in OBJECTS)
    return Dice(f"{seed}/{split}").shuffled(body for body in bodies if split_of(body) == split)


def _pairs(speakers: Sequence[str], position: int, sides: Sequence[str], seed: int) -> list[Row]:
    """List pairs that differ in one word of the reply, the better side first; other words vary."""
    dice = Dice(f"{seed}/{position}/{sides[0]}")
    return list(_each_pair(speakers, position, sides, _bodies("train", seed), dice))


def _each_pair(
    speakers: Sequence[str], position: int, sides: Sequence[str], bodies: Sequence[str], dice: Dice
) -> Iterator[Row]:
    for speaker in speakers:
        for body in bodies:
            reply = [dice.choose(OPENINGS), body, dice.choose(CLOSES)]
            chosen, rejected = (
                " ".join([*reply[:position], side, *reply[position + 1 :]]) for side in sides
            )
            yield {"prompt": f"{speaker} : {body} =", "chosen": chosen, "rejected": rejected}
