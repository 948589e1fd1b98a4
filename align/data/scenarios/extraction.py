"""Named-entity recognition and relation extraction, on sentences of made-up people, places and firms."""

from __future__ import annotations

from align.data.scenarios.questions import Exercise, world_of
from align.data.scenarios.world import Dice, World, words

GIVEN = words("ann bob cara dev eva finn gita hugo")
FAMILY = words("lee marsh novak ortiz quinn")
PLACES = words("oslo lima quito turin dakar perth")
REGIONS = words("north upper new")
FIRMS = words("acme zeta orbit nimbus vertex lumen")
FORMS = words("labs bank works")
LINKS = words("met in near with from at saw of")
NUMBERS = words("three seven twelve forty")

ENTITY_TAGS = {"person": "PER", "place": "LOC", "firm": "ORG", "number": "NUM"}


class Entities:
    """Family of entity types: a sentence's answer are its tags in BIO form, those of one type alone."""

    tasks: tuple[str, ...] = ("person", "place", "firm")
    general: tuple[str, ...] = ("number",)

    def draw(self, dice: Dice) -> Exercise:
        """Draw a sentence of one entity of each type, in random order with words between."""
        spans = [(kind, _entity(kind, dice)) for kind in dice.shuffled(ENTITY_TAGS)]
        words, kinds = [], []
        for kind, span in spans:
            words += [*span, dice.choose(LINKS)]
            kinds += [*(f"{mark}-{kind}" for mark in ["B", *"I" * (len(span) - 1)]), "O"]
        answers = {
            kind: " ".join(
                mark.replace(kind, tag) if mark.endswith(kind) else "O" for mark in kinds
            )
            for kind, tag in ENTITY_TAGS.items()
        }
        return Exercise(" ".join(words), answers)


def _entity(kind: str, dice: Dice) -> list[str]:
    """Draw the words of an entity, one or two."""
    if kind == "number":
        return [dice.choose(NUMBERS)]
    first, second = {"person": (GIVEN, FAMILY), "place": (REGIONS, PLACES), "firm": (FIRMS, FORMS)}[
        kind
    ]
    words = [dice.choose(first), dice.choose(second)]
    if dice.chance() < 0.5:
        words = words[1:] if kind == "place" else words[:1]
    return words


RELATIONS = {
    "employer": ("serves", FIRMS),
    "home": ("inhabits", PLACES),
    "knows": ("befriends", GIVEN),
    "age": ("counts", NUMBERS),
}


class Relations:
    """Family of relations: a sentence's answer is the triple of one relation."""

    tasks: tuple[str, ...] = ("employer", "home", "knows")
    general: tuple[str, ...] = ("age",)

    def draw(self, dice: Dice) -> Exercise:
        """Draw a person with a fact of each relation, in random order."""
        subject = dice.choose(GIVEN)
        answers, clauses = {}, []
        for relation in dice.shuffled(RELATIONS):
            phrase, objects = RELATIONS[relation]
            value = dice.choose([each for each in objects if each != subject])
            clauses.append(f"{phrase} {value}")
            answers[relation] = f"{subject} | {relation} | {value}"
        return Exercise(f"{subject} {' '.join(clauses)}", answers)


def entities(seed: int) -> World:
    """Build the world of named-entity recognition."""
    return world_of(Entities(), seed)


def relations(seed: int) -> World:
    """Build the world of relation extraction."""
    return world_of(Relations(), seed, steps=900)
