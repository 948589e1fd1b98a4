"""The benchmark of judged candidates: the exact chance to be accepted, the plan, and what fails it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from align.data.demo.world import examples
from align.gate.statistics.significance import tango_noninferiority
from benchmarks import judge as benchmark
from benchmarks.candidates import Candidate, population
from benchmarks.judge import ALPHA, MARGIN, chance, holds, level, planned


@pytest.mark.parametrize(
    ("lost", "won", "prompts", "items"), [(6, 8, 300, 250), (9, 4, 400, 300), (0, 0, 200, 120)]
)
def test_the_chance_is_that_over_all_draws_of_items(
    lost: int, won: int, prompts: int, items: int
) -> None:
    tables = stats.multivariate_hypergeom([lost, won, prompts - lost - won], items)
    expected = 0.0
    for b in range(min(lost, items) + 1):
        for c in range(min(won, items - b) + 1):
            if tango_noninferiority(b, c, items, MARGIN).p <= ALPHA:
                expected += tables.pmf([b, c, items - b - c])
    assert chance(lost, won, prompts, items) == pytest.approx(expected, abs=1e-9)


def test_the_chance_falls_with_the_loss_to_at_most_alpha_at_the_margin() -> None:
    chances = [chance(500 + half, 500 - half, 10_000, 600) for half in (0, 50, 100, 150, 250)]
    assert chances == sorted(chances, reverse=True)
    assert chances[3] <= ALPHA
    assert chances[0] == pytest.approx(planned(0.0, 0.1, 600), abs=0.02)
    assert chances[1] == pytest.approx(planned(0.01, 0.1, 600), abs=0.02)


def candidates(loss: float, count: int) -> list[Candidate]:
    half, folder = round(5_000 * loss), Path("none")
    counts = {"lost": 500 + half, "won": 500 - half, "prompts": 10_000}
    return [Candidate(number=n, planted=loss, folder=folder, **counts) for n in range(count)]


@pytest.mark.parametrize(
    ("loss", "share", "fine"),
    [(0.0, 0.74, True), (0.0, 0.4, False), (0.01, 0.45, True), (0.03, 0.04, True), (0.03, 0.3, False)],
)  # fmt: skip
def test_what_fails_the_benchmark(loss: float, share: float, fine: bool) -> None:
    own = candidates(loss, 100)
    accepted = {c.number: [c.number < 100 * share] for c in own}
    assert holds(level(loss, own, accepted, 600)) is fine


def test_a_plan_that_is_off_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    own = candidates(0.0, 10)
    accepted = {c.number: [c.number < 8] for c in own}
    assert holds(level(0.0, own, accepted, 600))
    monkeypatch.setattr(benchmark, "planned", lambda *_: 0.8)
    assert not holds(level(0.0, own, accepted, 600))


def test_a_population_is_every_prompt_that_a_suite_may_draw() -> None:
    names = {example.id for example in population("rev")}
    drawn: list[Any] = [examples("rev", 600, "eval", seed) for seed in (0, 7)]
    assert all({example.id for example in draw} <= names for draw in drawn)
    assert math.isclose(len(names), 10_000, rel_tol=0.05)


@pytest.mark.parametrize("patient", [False, True], ids=["until close", "to the last count"])
def test_the_line_between_two_models_is_searched_to_the_planted_loss(
    monkeypatch: pytest.MonkeyPatch, patient: bool
) -> None:
    from benchmarks import candidates
    from benchmarks.candidates import CLOSE, planted_at

    if patient:
        monkeypatch.setattr(candidates, "CLOSE", -1.0)

    class Line:
        """A model of one weight: the higher it is, the fewer of 10,000 prompts it answers rightly."""

        part = np.arange(0, 10_000, 7)

        def right(self, weights: Any, which: Any = None) -> Any:
            own = np.arange(10_000) >= 3_000 * float(weights["w"]) ** 2
            return own if which is None else own[which]

    import torch

    start, end = {"w": torch.tensor(0.1)}, {"w": torch.tensor(1.0)}
    before = np.arange(10_000) >= 500
    share, after = planted_at(Line(), start, end, before, 0.03)  # type: ignore[arg-type]
    assert float((before.astype(float) - after).mean()) == pytest.approx(0.03, abs=CLOSE)
    assert 3_000 * (0.1 + 0.9 * share) ** 2 == pytest.approx(800, abs=1 + 10_000 * CLOSE)
    with pytest.raises(ValueError, match="does not pass"):
        planted_at(Line(), start, end, before, 0.9)  # type: ignore[arg-type]
