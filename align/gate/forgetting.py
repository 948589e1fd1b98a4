"""Metrics of continual learning: what a sequence of rounds kept, learnt and lost, from a score matrix.

Row ``i`` holds the means of one snapshot on every suite: the base, then every committed round.
Metrics run over the *accepted path*: the base and the accepted rounds, whose suites are the tasks
``j = 1..T`` in order, ``a[i][j]`` being the score on task ``j`` after accepted round ``i`` (0: the
base). An empty cell was not measured: it is never a 0, and a mean is over the terms that have all their
cells. Nothing here decides: the gate works on items, these are averages to look at.

Definitions as in GEM (arXiv 1706.08840), RWalk (arXiv 1801.10112) and the survey of Wang et al. (arXiv
2302.00487). What a campaign cannot know of itself is given: scores of a joint run (`intransigence`,
`relative_composition`), of rounds learnt from the base alone (`forward_gain`, `sample_efficiency`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from align.gate.measurement.evaluate import ItemResults, paired

ON_FEWER = "*"
"""Mark of a mean over fewer items than others that it stands beside."""
ON_FEWER_WORDS = (
    "over fewer items than others of its column, since the suite stopped early: verdicts compare the same "
    "items, these means do not"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRow:
    """The scores of one snapshot."""

    name: str
    """``base`` or the round's name."""
    accepted: bool
    """The base counts as accepted."""
    scores: tuple[float | None, ...]
    """Mean on every suite, in the matrix's order; None where it was not measured."""
    items: tuple[int | None, ...] = ()
    """Number of items behind every mean; empty where nobody counted."""

    def select(self, columns: Sequence[int]) -> MatrixRow:
        """Return the row with some of its columns."""
        items = tuple(self.items[j] for j in columns) if self.items else ()
        return replace(self, scores=tuple(self.scores[j] for j in columns), items=items)


class PathMetrics:
    """Metrics over the accepted path, from the cells that were measured.

    A campaign of thousands of rounds measures each snapshot on a few of its suites, so every sum runs over
    cells, never over a square of rounds.
    """

    @property
    def tasks(self) -> tuple[tuple[int, str], ...]:
        """Row on the path after which each task was learnt, and its suite."""
        raise NotImplementedError

    @property
    def cells(self) -> Sequence[Mapping[str, float]]:
        """Measured scores by suite of every row on the path, the base first."""
        raise NotImplementedError

    @property
    def uneven(self) -> bool:
        """True if the summary numbers compare means of one task over different numbers of items."""
        raise NotImplementedError

    def average_performance(self) -> float | None:
        """Compute AP = 1/T sum_{j<=T} a[T][j]."""
        return _mean(self.cells[-1].get(task) for _, task in self.tasks)

    def average_incremental_accuracy(self) -> float | None:
        """Compute AIA = 1/T sum_{t<=T} AP_t, with AP_t = 1/t sum_{j<=t} a[t][j]."""
        learnt = {task: i for i, task in self.tasks}
        return _mean(
            _mean(
                score for task, score in self.cells[row].items() if learnt.get(task, row + 1) <= row
            )
            for row, _ in self.tasks
        )

    def learning_accuracy(self) -> float | None:
        """Compute LA = 1/T sum_j a[j][j]: how well each task was learnt when it was trained."""
        return _mean(self.cells[i].get(task) for i, task in self.tasks)

    def backward_transfer(self) -> float | None:
        """Compute BWT = 1/(T-1) sum_{j<T} (a[T][j] - a[j][j]); below 0 is forgetting.

        GEM's denominator; TRACE divides the same sum by T.
        """
        last = self.cells[-1]
        return _mean(_minus(last.get(task), self.cells[i].get(task)) for i, task in self._earlier)

    def forgetting(self) -> float | None:
        """Compute FM = 1/(T-1) sum_{j<T} max_{j<=i<T} (a[i][j] - a[T][j]); above 0 is forgetting.

        The best is taken over the rows that have the cell.
        """
        learnt, best = {task: i for i, task in self._earlier}, dict[str, float]()
        never = len(self.cells)
        for row, cells in enumerate(self.cells[:-1]):
            for task, score in cells.items():
                if learnt.get(task, never) <= row and score > best.get(task, -math.inf):
                    best[task] = score
        return _mean(_minus(best.get(task), self.cells[-1].get(task)) for _, task in self._earlier)

    def forward_transfer(self) -> float | None:
        """Compute FWT_zero = 1/(T-1) sum_{j>=2} (a[j-1][j] - a[0][j]): gains on tasks before their round.

        GEM's zero-shot form, with the campaign's base in place of a random initialisation.
        """
        before = self.cells
        return _mean(
            _minus(before[i - 1].get(task), before[0].get(task)) for i, task in self.tasks if i > 1
        )

    def forward_gain(self, alone: Mapping[str, float]) -> float | None:
        """Compute FWT_gain = 1/(T-1) sum_{j>=2} (a[j][j] - alone[j]): gains that earlier rounds brought.

        Args:
            alone: by task, its score where its round started from the base; tasks without are left out.
        """
        return _mean(
            _minus(self.cells[i].get(task), alone.get(task)) for i, task in self.tasks if i > 1
        )

    def intransigence(self, joint: Mapping[str, float]) -> float | None:
        """Compute IM = 1/T sum_j (joint[j] - a[j][j]); above 0 the sequence learns less than a joint run.

        Args:
            joint: by task, its score after one run on all tasks at an equal budget (RWalk, eq. 8).
        """
        return _mean(_minus(joint.get(task), self.cells[i].get(task)) for i, task in self.tasks)

    @property
    def _earlier(self) -> tuple[tuple[int, str], ...]:
        """Tasks that later rounds could have made the policy forget."""
        last = len(self.cells) - 1
        return tuple((i, task) for i, task in self.tasks if i < last)

    @property
    def final(self) -> dict[str, float]:
        """Scores of the last accepted snapshot by suite, where it was measured."""
        return dict(self.cells[-1])


@dataclass(frozen=True, kw_only=True)
class PathScores(PathMetrics):
    """Measured scores on the accepted path of a whole campaign, however long, without empty cells."""

    names: tuple[str, ...]
    """Rows of the path: ``base``, then accepted rounds in order."""
    suites: frozenset[str]
    """Suites that are columns."""
    scores: tuple[Mapping[str, float], ...]
    """Means by suite, row by row."""
    fewer: frozenset[str] = frozenset()
    """Suites with a mean over fewer items than another of its column."""
    retired: frozenset[str] = frozenset()

    def select(self, suites: Collection[str]) -> PathScores:
        """Return the scores on some of the suites."""
        return replace(
            self,
            suites=self.suites & set(suites),
            scores=tuple({n: a for n, a in row.items() if n in suites} for row in self.scores),
        )

    @cached_property
    def tasks(self) -> tuple[tuple[int, str], ...]:
        """Row on the path after which each task was learnt, and its suite."""
        names = enumerate(self.names[1:], start=1)
        return tuple((i, n) for i, n in names if n in self.suites and n not in self.retired)

    @property
    def cells(self) -> Sequence[Mapping[str, float]]:
        """Measured scores by suite of every row on the path, the base first."""
        return self.scores

    @property
    def uneven(self) -> bool:
        """True if the summary numbers compare means of one task over different numbers of items."""
        return any(task in self.fewer for _, task in self.tasks)


@dataclass(frozen=True, kw_only=True)
class ScoreMatrix(PathMetrics):
    """Rows in the order the rounds were committed, the base first; columns are suites.

    Sums over hundreds of rounds read its path and its tasks very often, so these are computed once.
    """

    suites: tuple[str, ...]
    rows: tuple[MatrixRow, ...]
    retired: frozenset[str] = frozenset()
    """Rounds that a later one overrode: losing them is no forgetting, they are no tasks."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if {len(row.scores), len(row.items) or len(self.suites)} != {len(self.suites)}:
                raise ValueError(f"row {row.name!r} needs {len(self.suites)} cells")

    def select(self, columns: Sequence[int]) -> ScoreMatrix:
        """Return the matrix of some of its columns."""
        return replace(
            self,
            suites=tuple(self.suites[j] for j in columns),
            rows=tuple(row.select(columns) for row in self.rows),
        )

    @cached_property
    def most_items(self) -> tuple[int, ...]:
        """Largest number of items behind a mean, by suite; 0 where nobody counted."""
        return tuple(
            max((row.items[j] or 0 for row in self.rows if row.items), default=0)
            for j in range(len(self.suites))
        )

    def on_fewer(self, row: MatrixRow) -> tuple[bool, ...]:
        """Tell by suite if the row's mean is over fewer items than another of its column, as where a suite
        stopped early: a difference between the two is not one of the same items.
        """
        if not row.items:
            return (False,) * len(self.suites)
        return tuple(
            n is not None and n < most for n, most in zip(row.items, self.most_items, strict=True)
        )

    @property
    def uneven(self) -> bool:
        """True if the summary numbers compare means of one task over different numbers of items."""
        columns = [self._columns[task] for _, task in self.tasks]
        return any(fewer[j] for fewer in map(self.on_fewer, self.path) for j in columns)

    @cached_property
    def path(self) -> tuple[MatrixRow, ...]:
        """The base and the accepted rounds."""
        return tuple(row for row in self.rows if row.accepted)

    @cached_property
    def tasks(self) -> tuple[tuple[int, str], ...]:
        """Row on the path after which each task was learnt, and its suite."""
        names = enumerate((row.name for row in self.path[1:]), start=1)
        return tuple((i, n) for i, n in names if n in self._columns and n not in self.retired)

    @cached_property
    def cells(self) -> Sequence[Mapping[str, float]]:
        """Measured scores by suite of every row on the path, the base first."""
        return [self._scores(row) for row in self.path]

    def scores_after(self, name: str) -> dict[str, float]:
        """Return the scores of an accepted round's snapshot by suite, where it was measured."""
        return self._scores(next(row for row in self.path[1:] if row.name == name))

    def _scores(self, row: MatrixRow) -> dict[str, float]:
        columns = self._columns.items()
        return {suite: score for suite, j in columns if (score := row.scores[j]) is not None}

    @cached_property
    def _columns(self) -> dict[str, int]:
        """Position of every suite; of a repeated name the first."""
        return {suite: j for j, suite in reversed([*enumerate(self.suites)])}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Items of one suite that changed between two snapshots; an average hides what cancels."""

    lost: int
    """Items whose value fell: 1 -> 0 for pass/fail."""
    won: int
    """Items whose value rose: 0 -> 1 for pass/fail."""
    n: int

    @property
    def lost_share(self) -> float:
        return self.lost / self.n

    @property
    def won_share(self) -> float:
        return self.won / self.n


def transitions(before: ItemResults, after: ItemResults) -> Transitions:
    """Find the items that one snapshot lost and won against an earlier one, on the same suite.

    Two evaluations of one snapshot give the noise floor: with greedy decoding it should be 0.
    """
    pairs = list(zip(*paired(after, before), strict=True))
    return Transitions(
        lost=sum(now < then for now, then in pairs),
        won=sum(now > then for now, then in pairs),
        n=len(pairs),
    )


def composition_gap(
    composed: Mapping[tuple[str, str], float], alone: Mapping[str, float]
) -> float | None:
    """Compute 1/P sum_(j,k) (c[j,k] - a[j] a[k]), the gain over two independent skills.

    Args:
        composed: success on held-out pairs of skills from different rounds, never trained together.
        alone: success on every skill by itself.
    """
    return _mean(score - alone[j] * alone[k] for (j, k), score in composed.items())


def relative_composition(
    composed: Mapping[tuple[str, str], float], joint: Mapping[tuple[str, str], float]
) -> float | None:
    """Compute C / C_joint over the pairs that both runs were measured on; 1 is what a joint run composes.

    None where there is no common pair, or the joint run composes nothing.
    """
    common = composed.keys() & joint.keys()
    composes = _mean(composed[pair] for pair in sorted(common))
    joint_composes = _mean(joint[pair] for pair in sorted(common))
    return composes / joint_composes if composes is not None and joint_composes else None


def rollouts_to_reach(
    curve: Sequence[tuple[float, float]], reference: float, share: float = 0.8
) -> float | None:
    """Compute N_80: rollouts until a score reaches ``share`` of the reachable; None: not in this budget.

    Args:
        curve: (rollouts so far, score), in order.
        reference: the score of a joint or single-task run, above 0.

    >>> rollouts_to_reach([(100, 0.2), (200, 0.7), (300, 0.9)], reference=0.8)
    200
    """
    if reference <= 0:
        raise ValueError(f"a share of the reference needs one above 0, got {reference}")
    reached = (rollouts for rollouts, score in curve if score >= share * reference)
    return next(reached, None)


def sample_efficiency(
    in_sequence: Sequence[tuple[float, float]],
    alone: Sequence[tuple[float, float]],
    reference: float,
    share: float = 0.8,
) -> float | None:
    """Compute N_80 of a task in its round over N_80 from the base; above 1 is lost plasticity.

    Parameters are those of `rollouts_to_reach`; None where one of the two did not get there.
    """
    here = rollouts_to_reach(in_sequence, reference, share)
    there = rollouts_to_reach(alone, reference, share)
    return here / there if here is not None and there else None


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _mean(terms: Iterable[float | None]) -> float | None:
    """Return the mean of the terms that could be formed; None where none could."""
    present = [term for term in terms if term is not None]
    return math.fsum(present) / len(present) if present else None
