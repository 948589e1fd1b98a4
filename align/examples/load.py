"""Examples of a file, read and checked at once: a bad file is one message before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from align.examples.config import ExamplesConfig
from align.examples.encode import OVER_LONG, encode, windows
from align.examples.forms import FORMS, Unusable, text
from align.examples.stream import Unit
from align.learner.losses.base import Material
from rollouts import rows as files
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder

PLACES = 3
"""Rows that a message names for each reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What became of a source."""

    made: str
    """What a unit is: pair, rating, demonstration, window."""
    num_rows: int
    """Rows read, unusable ones included."""
    num_units: int
    num_cut: int
    """Answers cut to the context."""
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By reason, the places of the rows that could not be used: ``pairs.jsonl:7``, or with a row's own
    value ``pairs.jsonl:7: 812 tokens``."""

    @property
    def num_dropped(self) -> int:
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        """One sentence."""
        parts = [f"{_count(self.num_rows, 'row')} gave {_count(self.num_units, self.made)}"]
        if self.num_cut:
            parts.append(f"{_count(self.num_cut, 'answer')} cut to the context")
        if self.dropped:
            parts.append(f"{_count(self.num_dropped, 'row')} left out: {self.reasons}")
        return "; ".join(parts)

    @property
    def reasons(self) -> str:
        """Why rows could not be used, the most frequent reason first, each with its first places."""
        by_count = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
        return ", ".join(
            f"{len(places)} {reason} ({'; '.join(places[:PLACES])}{'; ...' * (len(places) > PLACES)})"
            for reason, places in by_count
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """What a round learns from."""

    units: tuple[Unit, ...]
    report: Report


def load_examples(
    config: ExamplesConfig,
    material: Material,
    encoder: PromptEncoder,
    context: int,
    round: str,
    taken: Iterable[files.Row] | None = None,
) -> Examples:
    """All examples of a source as rows of token ids, in its order.

    Args:
        material: what the rows are read as; not ``rollouts``.
        context: longest prompt plus completion, in tokens.
        round: written on every row.
        taken: what the round took of the inbox, where its source is a stream.

    Raises a `UserError` for a source that cannot be read or holds nothing, and where more than
    ``config.max_dropped`` of its rows cannot be used; it names the first of them.
    """
    loading = _Loading(config, encoder, context, round)
    if config.stream is None:
        taken = islice(files.read_rows(config.source, config.split), config.limit)
    rows = taken or ()
    units = tuple(loading.windows(rows) if material == "texts" else loading.units(rows, material))
    report = Report(
        made="window" if material == "texts" else material.removesuffix("s"),
        num_rows=loading.num_rows,
        num_units=len(units),
        num_cut=loading.num_cut,
        dropped={reason: tuple(places) for reason, places in loading.dropped.items()},
    )
    _check(report, config)
    return Examples(units=units, report=report)


class _Loading:
    """Reads rows and counts what becomes of them."""

    def __init__(
        self, config: ExamplesConfig, encoder: PromptEncoder, context: int, round: str
    ) -> None:
        self._config, self._encoder, self._context, self._round = config, encoder, context, round
        self.num_rows = self.num_cut = 0
        self.dropped: dict[str, list[str]] = {}

    def units(self, rows: Iterable[files.Row], material: Material) -> Iterator[Unit]:
        for row in rows:
            self.num_rows += 1
            columns = {n: v for n, v in row.values.items() if n != self._config.prompt}
            try:
                encoded = [
                    encode(
                        example,
                        self._encoder,
                        context=self._context,
                        cut=self._config.cut,
                        round=self._round,
                        columns=columns,
                    )
                    for example in FORMS[material](row.values, self._config)
                ]
            except Unusable as reason:
                self._drop(row, reason)
                continue
            self.num_cut += sum(one.num_cut for one in encoded)
            yield from (one.unit for one in encoded)

    def windows(self, rows: Iterable[files.Row]) -> Iterator[Unit]:
        texts = self._texts(rows)
        return windows(
            texts,
            self._encoder,
            context=self._context,
            round=self._round,
            pack=self._config.pack,
        )

    def _texts(self, rows: Iterable[files.Row]) -> Iterator[str]:
        for row in rows:
            self.num_rows += 1
            try:
                yield text(row.values, self._config)
            except Unusable as reason:
                self._drop(row, reason)

    def _drop(self, row: files.Row, reason: Unusable) -> None:
        place = row.place.rpartition("/")[2]
        told = place if reason.detail is None else f"{place}: {reason.detail}"
        self.dropped.setdefault(str(reason), []).append(told)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _check(report: Report, config: ExamplesConfig) -> None:
    if not report.num_rows:
        raise UserError("holds no examples", where=config.source)
    share = report.num_dropped / report.num_rows
    if share <= config.max_dropped and report.num_units:
        return
    too_long = any(reason.startswith(OVER_LONG) for reason in report.dropped)
    shorten = "set cut: true to shorten over-long answers, " if too_long else ""
    raise UserError(
        f"{report.num_dropped} of {report.num_rows} rows cannot be used, {share:.1%}; "
        f"max_dropped allows {config.max_dropped:.1%}",
        where=config.source,
        cause=report.reasons,
        remedy=f"mend these rows or the names of the columns, {shorten}or raise max_dropped",
    )
