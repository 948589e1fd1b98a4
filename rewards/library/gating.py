"""Gates: parts that a completion has to pass before its other parts count.

A gate reads the part's raw value. One that abstains holds nothing back, as an abstaining part takes no
part in the sum; one that fails has failed the sample, as any part does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Least raw value that a part demands, and the value of a completion that has less."""

    at_least: float
    """Least raw value that passes, in units of the part."""
    otherwise: float = 0.0
    """Value of a completion that does not pass, in place of the whole sum."""


def closed_gate(
    gates: Mapping[str, Gate], values: Mapping[str, float | None]
) -> tuple[str, Gate] | None:
    """Return the first gate, in the order of the parts, that a completion does not pass; None if it may
    count.

    Args:
        gates: by part, those that are one.
        values: raw value of every part; None where it abstained.

    >>> closed_gate({"valid": Gate(at_least=1.0)}, {"valid": 0.5, "kind": 9.0})
    ('valid', Gate(at_least=1.0, otherwise=0.0))
    """
    for name, gate in gates.items():
        value = values.get(name)
        if value is not None and value < gate.at_least:
            return name, gate
    return None
