"""Matrix metrics worked by hand, with cells that nobody measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.gate.forgetting import (
    MatrixRow,
    ScoreMatrix,
    Transitions,
    composition_gap,
    relative_composition,
    rollouts_to_reach,
    sample_efficiency,
    transitions,
)
from align.gate.measurement.evaluate import ItemResults
from rollouts.errors import RunError

SUITES = ("general", "rev", "sort", "inc")


def row(name: str, *scores: float | None, accepted: bool = True) -> MatrixRow:
    return MatrixRow(name=name, accepted=accepted, scores=scores)


FULL = ScoreMatrix(
    suites=SUITES,
    rows=(
        row("base", 1.0, 0.1, 0.2, 0.0),
        row("rev", 0.9, 0.8, 0.3, 0.1),
        row("sort", 0.9, 0.9, 0.7, 0.3),
        row("inc", 0.8, 0.5, 0.6, 0.4),
    ),
)


def test_means_over_fewer_items_are_marked() -> None:
    """Of sort 60 and 100 of 100 items, of rev 100 of 100; general is no task."""
    counts = {"base": (50, 100, 60, 100), "rev": (100, 100, 60, 100)}
    rows = tuple(replace(r, items=counts.get(r.name, (100,) * 4)) for r in FULL.rows)
    matrix = replace(FULL, rows=rows)
    assert matrix.most_items == (100,) * 4
    assert matrix.on_fewer(rows[0]) == (True, False, True, False)
    assert matrix.on_fewer(rows[3]) == (False,) * 4
    assert matrix.uneven
    assert not matrix.select([0, 1, 3]).uneven
    assert matrix.select([2]).rows[0].items == (60,)
    assert not FULL.uneven
    assert FULL.on_fewer(FULL.rows[0]) == (False,) * 4


def test_counts_of_another_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 cells"):
        replace(FULL, rows=(replace(FULL.rows[0], items=(1, 2)),))


def test_metrics_by_hand() -> None:
    assert FULL.average_performance() == pytest.approx((0.5 + 0.6 + 0.4) / 3)
    assert FULL.learning_accuracy() == pytest.approx((0.8 + 0.7 + 0.4) / 3)
    assert FULL.backward_transfer() == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert FULL.forgetting() == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)
    assert FULL.forward_transfer() == pytest.approx(((0.3 - 0.2) + (0.3 - 0.0)) / 2)


def test_a_rejected_round_is_shown_and_counts_nowhere() -> None:
    base, rev, sort, inc = FULL.rows
    rejected = row("bad", 0.0, 0.0, 0.0, 0.0, accepted=False)
    matrix = ScoreMatrix(suites=SUITES, rows=(base, rev, rejected, sort, inc))
    assert matrix.backward_transfer() == FULL.backward_transfer()
    assert matrix.tasks == ((1, "rev"), (2, "sort"), (3, "inc"))


def test_empty_cells_are_left_out() -> None:
    matrix = ScoreMatrix(
        suites=SUITES,
        rows=(
            row("base", 1.0, 0.1, None, 0.0),
            row("rev", 0.9, None, 0.3, 0.1),
            row("sort", 0.9, 0.9, 0.7, 0.3),
            row("inc", None, 0.5, 0.6, 0.4),
        ),
    )
    assert matrix.average_performance() == pytest.approx(0.5)
    assert matrix.learning_accuracy() == pytest.approx((0.7 + 0.4) / 2)
    assert matrix.backward_transfer() == pytest.approx(0.6 - 0.7)
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)
    assert matrix.forward_transfer() == pytest.approx(0.3 - 0.0)


def test_one_round_has_nothing_to_forget() -> None:
    matrix = ScoreMatrix(suites=SUITES, rows=FULL.rows[:2])
    assert matrix.average_performance() == pytest.approx(0.8)
    assert matrix.backward_transfer() is None
    assert matrix.forgetting() is None
    assert matrix.forward_transfer() is None


def test_the_base_alone_has_no_metrics() -> None:
    matrix = ScoreMatrix(suites=SUITES, rows=FULL.rows[:1])
    assert matrix.average_performance() is None
    assert matrix.learning_accuracy() is None


def test_losing_an_overridden_round_is_no_forgetting() -> None:
    matrix = ScoreMatrix(suites=SUITES, rows=FULL.rows, retired=frozenset({"rev"}))
    assert matrix.backward_transfer() == pytest.approx(0.6 - 0.7)


def test_a_ragged_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 4 cells"):
        ScoreMatrix(suites=SUITES, rows=(row("base", 1.0),))


def results(snapshot: str, values: dict[str, float], suite_hash: str = "h") -> ItemResults:
    return ItemResults(
        suite="rev",
        suite_hash=suite_hash,
        snapshot=snapshot,
        item_ids=tuple(values),
        values=tuple(values.values()),
        statuses=("scored",) * len(values),
        finishes=("stop",) * len(values),
    )


def test_transitions_do_not_cancel_and_follow_ids() -> None:
    before = results("one", {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0})
    after = results("two", {"d": 1.0, "c": 1.0, "b": 0.0, "a": 0.0})
    change = transitions(before, after)
    assert change == Transitions(lost=2, won=1, n=4)
    assert (change.lost_share, change.won_share) == (0.5, 0.25)
    assert transitions(before, before) == Transitions(lost=0, won=0, n=4)


@pytest.mark.parametrize(
    "other", [results("two", {"a": 1.0, "x": 0.0}), results("two", {"a": 1.0, "b": 0.0}, "other")]
)
def test_different_items_cannot_be_compared(other: ItemResults) -> None:
    with pytest.raises(RunError, match="different items"):
        transitions(results("one", {"a": 1.0, "b": 1.0}), other)


def test_what_a_task_scored_before_its_round_cannot_be_forgotten() -> None:
    knew_it = row("base", 1.0, 0.1, 0.95, 0.0)
    matrix = ScoreMatrix(suites=SUITES, rows=(knew_it, *FULL.rows[1:]))
    assert matrix.forgetting() == FULL.forgetting()
    assert matrix.forward_transfer() != FULL.forward_transfer()


def test_averages_over_the_rounds_by_hand() -> None:
    # AP_1 = .8; AP_2 = (.9 + .7) / 2 = .8; AP_3 = (.5 + .6 + .4) / 3 = .5
    assert FULL.average_incremental_accuracy() == pytest.approx((0.8 + 0.8 + 0.5) / 3)


def test_an_overridden_round_is_in_no_average() -> None:
    matrix = ScoreMatrix(suites=SUITES, rows=FULL.rows, retired=frozenset({"rev"}))
    assert matrix.average_incremental_accuracy() == pytest.approx((0.7 + 0.5) / 2)


def test_what_earlier_rounds_added_to_learning() -> None:
    alone = {"rev": 0.8, "sort": 0.9, "inc": 0.3}
    # The first round also starts from the base: it cannot have gained.
    assert FULL.forward_gain(alone) == pytest.approx(((0.7 - 0.9) + (0.4 - 0.3)) / 2)
    assert FULL.forward_gain({"inc": 0.3}) == pytest.approx(0.1)
    assert FULL.forward_gain({}) is None


def test_what_a_joint_run_learns_more() -> None:
    joint = {"rev": 0.9, "sort": 0.9, "inc": 1.0}
    assert FULL.intransigence(joint) == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert FULL.intransigence({}) is None


def test_composition_by_hand() -> None:
    composed = {("rev", "sort"): 0.3, ("sort", "inc"): 0.2}
    alone = {"rev": 0.5, "sort": 0.6, "inc": 0.4}
    assert composition_gap(composed, alone) == pytest.approx(((0.3 - 0.3) + (0.2 - 0.24)) / 2)
    joint = {("rev", "sort"): 0.5, ("sort", "inc"): 0.5, ("inc", "rev"): 0.9}
    assert relative_composition(composed, joint) == pytest.approx(0.25 / 0.5)
    assert relative_composition(composed, {("inc", "rev"): 0.9}) is None
    assert relative_composition(composed, dict.fromkeys(composed, 0.0)) is None


CURVE = [(32.0, 0.1), (64.0, 0.79), (96.0, 0.85), (128.0, 0.7)]


def test_rollouts_until_four_fifths() -> None:
    assert rollouts_to_reach(CURVE, reference=1.0) == 96
    assert rollouts_to_reach(CURVE, reference=0.9) == 64
    assert rollouts_to_reach(CURVE, reference=1.0, share=0.9) is None
    with pytest.raises(ValueError, match="above 0"):
        rollouts_to_reach(CURVE, reference=0.0)


def test_a_ratio_above_one_is_lost_plasticity() -> None:
    alone = [(32.0, 0.5), (48.0, 0.8)]
    assert sample_efficiency(CURVE, alone, reference=1.0) == pytest.approx(96 / 48)
    assert sample_efficiency(CURVE[:1], alone, reference=1.0) is None
    assert sample_efficiency(CURVE, alone[:1], reference=1.0) is None
