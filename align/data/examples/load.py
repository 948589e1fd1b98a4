"""Loading of a file's examples, which checks all rows before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from align.algorithms.base import Material
from align.config.data import ExamplesConfig
from align.data.examples.encode import OVER_LONG, Document, encode, windows
from align.data.examples.forms import FORMS, Example, Unusable, as_chat, text
from align.data.examples.stream import Unit
from rollouts import rows as files
from rollouts.chat.probe import check_answers
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder, content_id

PLACES = 3
"""Number of rows that a message names for each reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Counts of a source's rows that were read, truncated and dropped."""

    unit: str
    """Word for a unit: pair, rating, demonstration, window."""
    num_rows: int
    """Number of rows read, unusable ones included."""
    num_units: int
    num_cut: int
    """Number of answers that were truncated to fit the context."""
    repeated: tuple[str, ...] = ()
    """Rows that repeat an earlier row, as ``pairs.jsonl:9 is pairs.jsonl:2``. All repeats are learnt
    from."""
    dropped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Lines of the rows that could not be used, by reason: ``pairs.jsonl:7``, or with the row's value
    ``pairs.jsonl:7: 812 tokens``."""

    @property
    def num_dropped(self) -> int:
        """Number of rows that could not be used."""
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        """Return the report as one sentence."""
        parts = [f"{_count(self.num_rows, 'row')} gave {_count(self.num_units, self.unit)}"]
        if self.num_cut:
            parts.append(f"{_count(self.num_cut, 'answer')} cut to the context")
        if self.repeated:
            number = len(self.repeated)
            verb = "repeats another" if number == 1 else "repeat others"
            parts.append(f"{_count(number, 'row')} {verb} ({_first(self.repeated)})")
        if self.dropped:
            parts.append(f"{_count(self.num_dropped, 'row')} left out: {self.reasons}")
        return "; ".join(parts)

    @property
    def reasons(self) -> str:
        """Reasons why rows could not be used, the most frequent first, each with its first rows."""
        by_count = sorted(self.dropped.items(), key=lambda item: -len(item[1]))
        return ", ".join(
            f"{len(places)} {reason} ({_first(places)})" for reason, places in by_count
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Units that a round learns from, and the report on their source."""

    units: tuple[Unit, ...]
    report: Report
    documents: tuple[Document, ...] = ()
    """Documents that windows are cut from; empty unless the rows are texts."""


def load_examples(
    config: ExamplesConfig,
    material: Material,
    encoder: PromptEncoder,
    context: int,
    round: str,
    source_rows: Iterable[files.FileRow] | None = None,
) -> Examples:
    """Load all examples of a source as rows of token ids, in its order.

    Args:
        material: kind of data that the rows are; not ``rollouts``.
        context: longest prompt plus completion, in tokens.
        round: name of the round, for every row.
        source_rows: rows that the round took of the inbox, if its source is a stream.

    Raises:
        UserError: the source cannot be read or is empty, or more than ``config.max_dropped`` of its rows
            cannot be used; names the first of them.
    """
    loading = _Loading(config, encoder, context, round)
    if config.stream is None:
        source_rows = islice(files.read_rows(config.source, config.split), config.limit)
    rows = source_rows or ()
    documents = tuple(loading.documents(rows)) if material == "texts" else ()
    if material == "texts":
        units = tuple(windows(documents, encoder, context=context, round=round, pack=config.pack))
    else:
        units = tuple(loading.units(rows, material))
    report = Report(
        unit="window" if material == "texts" else material.removesuffix("s"),
        num_rows=loading.num_rows,
        num_units=len(units),
        num_cut=loading.num_cut,
        repeated=tuple(loading.repeated),
        dropped={reason: tuple(places) for reason, places in loading.dropped.items()},
    )
    _check(report, config)
    return Examples(units=units, report=report, documents=documents)


class _Loading:
    """Reader of rows, which counts the truncated, repeated and dropped ones."""

    def __init__(
        self, config: ExamplesConfig, encoder: PromptEncoder, context: int, round: str
    ) -> None:
        self._config, self._encoder, self._context, self._round = config, encoder, context, round
        self.num_rows = self.num_cut = 0
        self._chat, self._chats_checked = _asks_for_chat(config, encoder), False
        self.dropped: dict[str, list[str]] = {}
        self.repeated: list[str] = []
        self._first: dict[object, str] = {}

    def units(self, rows: Iterable[files.FileRow], material: Material) -> Iterator[Unit]:
        """Encode rows as units, leaving out those that cannot be used."""
        for row in rows:
            self.num_rows += 1
            columns = {n: v for n, v in row.values.items() if n != self._config.prompt}
            try:
                examples = FORMS[material](row.values, self._config)
                if self._chat:
                    examples = [as_chat(example) for example in examples]
                self._check_template(examples)
                encoded = [
                    encode(
                        example,
                        self._encoder,
                        context=self._context,
                        cut=self._config.cut,
                        round=self._round,
                        columns=columns,
                        source_line=row.location,
                    )
                    for example in examples
                ]
            except Unusable as reason:
                self._drop(row, reason)
                continue
            self.num_cut += sum(encoding.num_cut for encoding in encoded)
            self._note(tuple(encoding.unit.id for encoding in encoded), row)
            yield from (encoding.unit for encoding in encoded)

    def _check_template(self, examples: Iterable[Example]) -> None:
        """Check, before the first chat row, that the chat template can teach answers."""
        if self._chats_checked or all(isinstance(example.prompt, str) for example in examples):
            return
        if self._encoder.tokenizer.chat_template is not None:
            check_answers(self._encoder, f"rounds.{self._round}.data")
        self._chats_checked = True

    def documents(self, rows: Iterable[files.FileRow]) -> Iterator[Document]:
        """Read rows as documents, leaving out those that cannot be used."""
        for row in rows:
            self.num_rows += 1
            try:
                content = text(row.values, self._config)
                document = Document(text=content, location=row.location, name=content_id(content))
            except Unusable as reason:
                self._drop(row, reason)
            except UnicodeEncodeError:
                self._drop(row, Unusable("not valid Unicode"))
            else:
                self._note(document.name, row)
                yield document

    def _note(self, content: object, row: files.FileRow) -> None:
        """Record a row, as a repeat if its content came before."""
        short_place = _short(row.location)
        first = self._first.setdefault(content, short_place)
        if first is not short_place:
            self.repeated.append(f"{short_place} is {first}")

    def _drop(self, row: files.FileRow, reason: Unusable) -> None:
        short_place = _short(row.location)
        entry = short_place if reason.detail is None else f"{short_place}: {reason.detail}"
        self.dropped.setdefault(str(reason), []).append(entry)


def _short(label: str) -> str:
    """Return file and line without the folders."""
    return label.rpartition("/")[2]


def _first(places: Sequence[str]) -> str:
    return "; ".join(places[:PLACES]) + "; ..." * (len(places) > PLACES)


def _asks_for_chat(config: ExamplesConfig, encoder: PromptEncoder) -> bool:
    """Tell if texts are treated as turns of a chat.

    Raises:
        UserError: ``chat`` is true, and the model has no chat template.
    """
    has_template = encoder.tokenizer.chat_template is not None
    if config.chat and not has_template:
        raise UserError(
            "chat is true, and the model has no chat template",
            where=config.source,
            remedy="set chat: false to learn plain text, or use a chat model",
        )
    return config.chat if config.chat is not None else has_template and config.template is not None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _check(report: Report, config: ExamplesConfig) -> None:
    if not report.num_rows:
        raise UserError("the source has no examples", where=config.source)
    share = report.num_dropped / report.num_rows
    if share <= config.max_dropped and report.num_units:
        return
    too_long = any(reason.startswith(OVER_LONG) for reason in report.dropped)
    shorten = ""
    if too_long:
        shorten = (
            "shorten the prompts that leave no room for an answer or raise rollouts.max_model_len, "
            if config.cut
            else "set cut: true to shorten over-long answers, "
        )
    raise UserError(
        f"{report.num_dropped} of {report.num_rows} rows cannot be used, {share:.1%}; "
        f"max_dropped allows {config.max_dropped:.1%}",
        where=config.source,
        cause=report.reasons,
        remedy=f"mend these rows or the names of the columns, {shorten}or raise max_dropped",
    )
