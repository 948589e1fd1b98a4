"""Pairs of a round that contradict an earlier round's: the same prompt and answers in the opposite order.

Both preferences cannot be kept. The later round owns such a prompt: neither the prompt nor its earlier
pairs are replayed any more, and all other prompts of the earlier round stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.data.examples.stream import Unit
from align.data.replay.contributions import rounds_to_come
from rollouts.prompts import text_of

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig

SHOWN = 3
"""Number of contradictions that a line shows."""
Key = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradiction:
    """Two pairs with the same prompt and answers, of which each prefers the other's rejected answer."""

    new: Unit
    earlier: Unit

    @property
    def shown(self) -> str:
        """Beginning of the prompt, with the lines of both pairs."""
        assert self.new.prompt is not None
        text = text_of(self.new.prompt)[:80]
        return f"{text!r} ({_short(self.new)} against {_short(self.earlier)})"


def contradictions(new: Sequence[Unit], earlier: Sequence[Unit]) -> list[Contradiction]:
    """Return the pairs of a round that an earlier round has in the opposite order, in the new order."""
    known = {_key(unit): unit for unit in earlier if _is_pair(unit)}
    opposites = ((unit, known.get(_opposite(unit))) for unit in new if _is_pair(unit))
    return [
        Contradiction(new=unit, earlier=opposite)
        for unit, opposite in opposites
        if opposite is not None
    ]


def contradiction_lines(
    rounds: Sequence[RoundConfig], examples: Mapping[str, Sequence[Unit]], states: Mapping[str, str]
) -> list[str]:
    """Describe the contradictions of every round to come with the rounds before it, with examples.

    Args:
        rounds: all rounds of the campaign, in order.
        examples: training units by round name; a round whose file is not read has none.
        states: state of every round in the ledger. A round to come counts as accepted.
    """
    lines: list[str] = []
    policies = [spec for spec in rounds if spec.algorithm.makes == "policy"]
    for spec, earlier in rounds_to_come(policies, states):
        units = examples.get(spec.name, ())
        pairs_of = {
            other.name: contradictions(units, examples.get(other.name, ())) for other in earlier
        }
        lines += [_line(spec, name, pairs) for name, pairs in pairs_of.items() if pairs]
        replaced = any(pairs_of.values()) or any(other.asks == spec.asks for other in earlier)
        if spec.mode == "override" and not replaced:
            lines.append(
                f"round {spec.name}: mode: override replaces nothing: no earlier round asks the same "
                "prompts or has pairs in the opposite order"
            )
    return lines


def _line(spec: RoundConfig, other: str, pairs: Sequence[Contradiction]) -> str:
    names = {pair.new.prompt.id for pair in pairs if pair.new.prompt is not None}
    shown = "; ".join(pair.shown for pair in pairs[:SHOWN]) + "; ..." * (len(pairs) > SHOWN)
    hint = "" if spec.mode == "override" else "; set mode: override to say that this is meant"
    return (
        f"round {spec.name}: {len(pairs)} of its pairs contradict round {other}, which has them in "
        f"the opposite order: {shown}. Once it is accepted, these {len(names)} prompts of {other} "
        f"are replayed no more, and the others stay{hint}"
    )


def _is_pair(unit: Unit) -> bool:
    return unit.prompt is not None and [row.advantage for row in unit.rows] == [1.0, -1.0]


def _key(unit: Unit) -> Key:
    assert unit.prompt is not None
    chosen, rejected = unit.rows
    return unit.prompt.id, chosen.completion_ids, rejected.completion_ids


def _opposite(unit: Unit) -> Key:
    name, chosen, rejected = _key(unit)
    return name, rejected, chosen


def _short(unit: Unit) -> str:
    return unit.location.rpartition("/")[2]
