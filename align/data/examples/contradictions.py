"""Examples of a round that contradict an earlier round's: both cannot be kept.

A round states of a prompt which of two answers is the better one (pairs), which answers are good or bad
(ratings), and which answer is to be given (demonstrations). An earlier example of each kind is contradicted
by these statements of a later round:

    pair            the same two answers in the opposite order; its rejected answer is demonstrated
    rating          the same answer with the other label; a bad answer is demonstrated; a bad answer is
                    preferred to a good one
    demonstration   its answer is rejected or rated bad, or the prompt has other demonstrations now

A text has no prompt and contradicts nothing. Prompts and answers are compared by their tokens, whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.algorithms.base import Material
from align.data.examples.stream import Unit
from align.data.replay.contributions import rounds_to_come
from rollouts.prompts import text_of

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

SHOWN = 3
"""Number of contradictions that a line shows."""
Answer = tuple[int, ...]
WAYS: Mapping[Material, str] = {
    "pairs": "has them in the opposite order",
    "ratings": "rates the same answers the other way",
    "demonstrations": "answers the same prompts otherwise",
}
"""Relation of an earlier round's examples to those that contradict them, where both are of one kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradiction:
    """Example of a round, and an example of an earlier round that it contradicts."""

    new: Unit
    earlier: Unit

    @property
    def prompt(self) -> str:
        """Name of the prompt that both are about."""
        assert self.earlier.prompt is not None
        return self.earlier.prompt.id

    @property
    def shown(self) -> str:
        """Beginning of the prompt, with the lines of both examples."""
        assert self.new.prompt is not None
        text = text_of(self.new.prompt)[:80]
        return f"{text!r} ({_short(self.new)} against {_short(self.earlier)})"


@dataclass(slots=True)
class _Statements:
    """Statements of a round about the answers to one prompt, each with the example that makes it."""

    orders: dict[tuple[Answer, Answer], Unit] = field(default_factory=dict)
    """Pairs of a better and a worse answer."""
    good: dict[Answer, Unit] = field(default_factory=dict)
    bad: dict[Answer, Unit] = field(default_factory=dict)
    demonstrated: dict[Answer, Unit] = field(default_factory=dict)
    """Demonstrated answers."""

    def add(self, unit: Unit, material: Material) -> None:
        """Add what an example states."""
        rows = unit.rows
        if material == "pairs" and len(rows) == 2:
            self.orders.setdefault((rows[0].completion_ids, rows[1].completion_ids), unit)
        elif material == "ratings" and len(rows) == 1:
            side = self.good if (rows[0].advantage or 0.0) > 0 else self.bad
            side.setdefault(rows[0].completion_ids, unit)
        elif material == "demonstrations" and len(rows) == 1:
            self.demonstrated.setdefault(rows[0].completion_ids, unit)

    def against_pair(self, better: Answer, worse: Answer) -> Unit | None:
        """Return the example that contradicts a pair; None if none does."""
        rated = self.bad.get(better) if worse in self.good else None
        return self.orders.get((worse, better)) or self.demonstrated.get(worse) or rated

    def against_rating(self, answer: Answer, is_good: bool, beside: _Statements) -> Unit | None:
        """Return the example that contradicts a rating, which stands ``beside`` others of its round."""
        if is_good:
            pairs = (self.orders.get((other, answer)) for other in beside.bad)
            return self.bad.get(answer) or next(filter(None, pairs), None)
        pairs = (self.orders.get((answer, other)) for other in beside.good)
        return (
            self.good.get(answer)
            or self.demonstrated.get(answer)
            or next(filter(None, pairs), None)
        )

    def against_demonstration(self, answer: Answer) -> Unit | None:
        """Return the example that contradicts a demonstration; None if none does."""
        rejected = (unit for (_, worse), unit in self.orders.items() if worse == answer)
        unit = self.bad.get(answer) or next(rejected, None)
        if unit is None and answer not in self.demonstrated:
            unit = next(iter(self.demonstrated.values()), None)
        return unit


def contradictions(
    new: Sequence[Unit],
    earlier: Sequence[Unit],
    materials: tuple[Material, Material] = ("pairs", "pairs"),
) -> list[Contradiction]:
    """Return each example of an earlier round that a round contradicts, in the new round's order.

    Args:
        new: examples of the round.
        earlier: examples of the earlier round.
        materials: what the examples of both are.
    """
    stated, before = _by_prompt(new, materials[0]), _by_prompt(earlier, materials[1])
    position = {id(unit): index for index, unit in enumerate(new)}
    pairs: list[Contradiction] = []
    for unit in earlier:
        prompt = None if unit.prompt is None else unit.prompt.id
        if prompt is None or prompt not in stated:
            continue
        opposite = _opposite(unit, materials[1], stated[prompt], before[prompt])
        if opposite is not None:
            pairs.append(Contradiction(new=opposite, earlier=unit))
    return sorted(pairs, key=lambda pair: position[id(pair.new)])


def contradiction_lines(
    rounds: Sequence[RoundConfig],
    examples: Mapping[str, Sequence[Unit]],
    states: Mapping[str, str],
    held_out: Mapping[str, Sequence[Unit]] | None = None,
) -> list[str]:
    """Describe the contradictions of every round to come with the rounds before it, with examples.

    Args:
        rounds: all rounds of the campaign, in order.
        examples: training units by round name; a round whose file is not read has none.
        states: state of every round in the ledger. A round to come counts as accepted.
        held_out: held-out units by round name, which suites measure; None: there are none.
    """
    lines: list[str] = []
    policies = [spec for spec in rounds if spec.algorithm.makes == "policy"]
    for spec, earlier in rounds_to_come(policies, states):
        pairs_of = {other.name: between(spec, other, examples, held_out or {}) for other in earlier}
        for other in earlier:
            if pairs := pairs_of[other.name]:
                held_ids = {unit.id for unit in (held_out or {}).get(other.name, ())}
                lines.append(_line(spec, other, pairs, held_ids))
        retired = any(pairs for name, pairs in pairs_of.items() if spec.replaces(name))
        retired |= any(other.asks == spec.asks for other in earlier if spec.replaces(other.name))
        if spec.mode == "override" and not retired and not _is_judged(spec, earlier):
            lines.append(
                f"round {spec.name}: mode: override replaces nothing: no earlier round "
                f"{'that it names ' if spec.overrides else ''}asks the same prompts or has examples that "
                "oppose its own"
            )
    return lines


def between(
    spec: RoundConfig,
    other: RoundConfig,
    examples: Mapping[str, Sequence[Unit]],
    held_out: Mapping[str, Sequence[Unit]],
) -> list[Contradiction]:
    """Return the contradictions of a round with an earlier one, held-out examples of both included."""
    return contradictions(
        (*examples.get(spec.name, ()), *held_out.get(spec.name, ())),
        (*examples.get(other.name, ()), *held_out.get(other.name, ())),
        (spec.algorithm.material, other.algorithm.material),
    )


def shown(pairs: Sequence[Contradiction]) -> str:
    """Return the first contradictions for people, one for each prompt as far as there are several."""
    by_prompt = {pair.prompt: pair for pair in reversed(pairs)}
    first = [pair for pair in pairs if by_prompt[pair.prompt] is pair]
    return "; ".join(pair.shown for pair in first[:SHOWN]) + "; ..." * (len(first) > SHOWN)


def _line(
    spec: RoundConfig, other: RoundConfig, pairs: Sequence[Contradiction], held_ids: set[str]
) -> str:
    material = spec.algorithm.material
    prompts = len({pair.prompt for pair in pairs})
    items = len({pair.earlier.id for pair in pairs if pair.earlier.id in held_ids})
    way = WAYS[material] if material == other.algorithm.material else "its examples oppose"
    line = (
        f"round {spec.name}: {len({pair.new.id for pair in pairs})} of its {material} contradict round "
        f"{other.name}, which {way}: {shown(pairs)}. Once it is accepted, these {prompts} prompts of "
        f"{other.name} are replayed no more, and the others stay"
    )
    if spec.replaces(other.name):
        of_these = (
            f"; {items} of them are held out, and no longer count in the suite of {other.name}"
        )
        return line + (of_these if items else "")
    if items:
        line += f"; {items} of them are held out, and the suite of {other.name} still asks for them"
    remedy = "add it to overrides" if spec.overrides else "set mode: override"
    return f"warning: {line}; {remedy} to say that this is meant"


def _is_judged(spec: RoundConfig, earlier: Iterable[RoundConfig]) -> bool:
    """Tell if rewards or snapshots decide what is contradicted, which is known when the round begins."""
    return any(
        "rollouts" in (spec.algorithm.material, other.algorithm.material)
        for other in earlier
        if spec.replaces(other.name)
    )


def _by_prompt(units: Sequence[Unit], material: Material) -> dict[str, _Statements]:
    statements: dict[str, _Statements] = {}
    for unit in units:
        if unit.prompt is not None:
            statements.setdefault(unit.prompt.id, _Statements()).add(unit, material)
    return statements


def _opposite(
    unit: Unit, material: Material, stated: _Statements, beside: _Statements
) -> Unit | None:
    """Return the example that contradicts an earlier one; None if none does."""
    answers = [row.completion_ids for row in unit.rows]
    if material == "pairs" and len(answers) == 2:
        return stated.against_pair(answers[0], answers[1])
    if material == "ratings" and len(answers) == 1:
        is_good = (unit.rows[0].advantage or 0.0) > 0
        return stated.against_rating(answers[0], is_good, beside)
    if material == "demonstrations" and len(answers) == 1:
        return stated.against_demonstration(answers[0])
    return None


def _short(unit: Unit) -> str:
    return unit.location.rpartition("/")[2]
