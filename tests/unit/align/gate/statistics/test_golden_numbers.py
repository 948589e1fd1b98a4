"""Numbers of every test and plan, as they were when the distributions were computed by hand.

``python -m tests.unit.align.gate.statistics.test_golden_numbers`` prints them as they are now.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.gate.statistics.significance import (
    critical_value,
    exact_interval,
    items_needed,
    joint_power,
    normal_cdf,
    normal_quantile,
    paired_t_noninferiority,
    power,
    smallest_margin,
    tango_interval,
    tango_noninferiority,
)

RECORD = Path(__file__).parents[3] / "data" / "golden_numbers.json"
ALPHAS = (0.05, 0.005, 0.00125)
TABLES = ((0, 0, 30), (1, 0, 50), (3, 40, 200), (7, 5, 60), (18, 0, 1500), (60, 75, 3000))
"""Items lost, won, and all."""
LISTS = tuple((k, n) for n in (1, 10, 50, 300, 3000) for k in sorted({0, 1, n // 3, n}))
PLANS = tuple(itertools.product((50, 1500), (0.02, 0.3), ALPHAS[:2], (0.0, 1.0)))
"""Items, variance, alpha and reach."""


def drawn(n: int) -> list[float]:
    """Return differences of scores, the same for ever."""
    rng = random.Random(n)
    return [round(rng.uniform(-0.5, 0.45), 3) for _ in range(n)]


def t_numbers(n: int, clusters: int | None, alpha: float) -> list[float]:
    labels = None if clusters is None else [index % clusters for index in range(n)]
    test = paired_t_noninferiority(drawn(n), 0.1, labels, alpha)
    return [test.t, test.p, *test.interval]


GOLDENS: dict[str, Callable[[], list[Any]]] = {
    "normal_cdf": lambda: [normal_cdf(z / 2) for z in range(-40, 18)],
    "normal_quantile": lambda: [
        normal_quantile(p) for p in (1e-9, *ALPHAS, 0.3, 0.5, 0.8, 0.95, 1 - 0.05 / 7, 1 - 1e-9)
    ],
    "tango": lambda: [
        tango_noninferiority(*table, margin).p for table in TABLES for margin in (0.0, 0.02, 0.1)
    ],
    "tango_interval": lambda: [tango_interval(*t, alpha) for t in TABLES for alpha in ALPHAS],
    "critical_value": lambda: [critical_value(*plan) for plan in PLANS],
    "power": lambda: [
        power(n, psi, 0.05, alpha, loss=0.01, pass_fail=not reach, reach=reach)
        for n, psi, alpha, reach in PLANS
    ],
    "joint_power": lambda: [
        joint_power(n, psi, [0.02, 0.05], alpha, pass_fail=not reach, reach=reach)
        for n, psi, alpha, reach in PLANS
    ],
    "smallest_margin": lambda: [
        smallest_margin(n, psi, alpha, pass_fail=not reach, reach=reach)
        for n, psi, alpha, reach in PLANS
    ],
    "items_needed": lambda: [
        items_needed(psi, 50 / n, alpha, pass_fail=not reach, reach=reach)
        for n, psi, alpha, reach in PLANS
        if n > 50
    ],
    "paired_t": lambda: [
        t_numbers(n, clusters, alpha)
        for n in (2, 8, 30, 200, 2000)
        for clusters in (None, max(2, n // 3))
        for alpha in ALPHAS
    ],
    "exact_interval": lambda: [exact_interval(*counts, a) for counts in LISTS for a in ALPHAS],
}
BY_SCIPY = {"paired_t", "exact_interval"}
"""Numbers whose distributions became scipy's."""


@pytest.mark.parametrize("name", GOLDENS)
def test_what_verdicts_and_plans_were_made_of_stays(name: str) -> None:
    """To the last bit, but to ten digits where the distribution became scipy's."""
    record = json.loads(RECORD.read_text())[name]
    now = json.loads(json.dumps(GOLDENS[name]()))
    if name not in BY_SCIPY:
        assert now == record
        return
    for numbers, recorded in zip(now, record, strict=True):
        assert math.dist(numbers, recorded) <= 1e-10 * math.hypot(*recorded)
        assert numbers == pytest.approx(recorded, rel=1e-10)


if __name__ == "__main__":
    print(json.dumps({name: numbers() for name, numbers in GOLDENS.items()}, indent=1))
