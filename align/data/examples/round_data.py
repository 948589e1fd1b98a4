"""Data of rounds, read, checked, and divided into the rows to learn from and those to measure on.

No round learns from the rows that a round holds out of its own source: they are removed from the prompts,
the general pools and the examples of the other rounds, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from align.config.gate import OverlapConfig
from align.data.base_model import SCHEMES
from align.data.examples.clashes import (
    DocumentRows,
    Measure,
    PromptRows,
    UnitRows,
    prompt_name,
    units_of,
)
from align.data.examples.encode import Document, windows
from align.data.examples.holdout import Division, divide, parted, prompts_of
from align.data.examples.load import Examples, load_examples
from align.data.examples.stream import Unit
from rollouts.errors import UserError, within
from rollouts.prompts import PromptEncoder, load_prompts
from rollouts.rows import FileRow
from rollouts.types import Prompt

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.config.data import ExamplesConfig
    from align.config.replay.pretraining import PretrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundData:
    """Data that rounds learn from and are measured on; each mapping is by round name."""

    prompts: dict[str, Sequence[Prompt]] = field(default_factory=dict)
    """New prompts of every round; for a round that learns from a file, the prompts of its examples."""
    held_prompts: dict[str, Sequence[Prompt]] = field(default_factory=dict)
    """Held-out prompts of rounds that hold out a share of their prompts."""
    general: dict[str, Sequence[Prompt]] = field(default_factory=dict)
    """General pool of every round that has one."""
    examples: dict[str, Sequence[Unit]] = field(default_factory=dict)
    """Training units of rounds with ``data``."""
    held_out: dict[str, Sequence[Unit]] = field(default_factory=dict)
    """Held-out units of rounds with ``data``, which they are measured on."""
    texts: dict[str, Sequence[Unit]] = field(default_factory=dict)
    """Windows of the texts that a round with ``replay.pretraining`` keeps likely."""
    held_texts: dict[str, Sequence[Unit]] = field(default_factory=dict)
    """Windows of the held-out documents of such texts."""
    reports: dict[str, str] = field(default_factory=dict)
    """Counts of each round's rows in a sentence: read, left out, divided."""
    held_names: frozenset[str] = frozenset()
    """Names by `prompt_name` of the prompts that no round learns from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundDataLoader:
    """Reader of the data of rounds.

    Args:
        rule: overlap rule of the gate.
        context: longest prompt plus completion, in tokens.
        taken: rows that each round took of the inbox, by round name.
        windows: hold out windows of texts, as in stores that are older than holding out documents.
        trained_on: `pool_hash` of each pool that an accepted round learnt from, by round name. Such a round
            keeps the data it had: if a later round holds out a part of it, the overlap check finds that.
    """

    rule: OverlapConfig
    encoder: PromptEncoder
    context: int
    taken: Mapping[str, Sequence[FileRow]] = field(default_factory=dict)
    windows: bool = False
    trained_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def load(self, rounds: Sequence[RoundConfig]) -> RoundData:
        """Read and divide the data of all rounds.

        Raises:
            UserError: the first source, row or share that cannot be used.
        """
        data = RoundData()
        for spec in rounds:
            where = f"rounds.{spec.name}"
            if spec.data is not None:
                with within(f"{where}.data"):
                    self._load_examples(spec, spec.data, data)
            elif spec.prompts is not None:
                with within(f"{where}.prompts"):
                    self._load_prompts(spec, data)
            pool = spec.replay.general_prompts
            if pool is not None:
                with within(f"{where}.replay.general_prompts"):
                    data.general[spec.name] = load_prompts(pool, SCHEMES, None, "general")
            if spec.replay.pretraining is not None and spec.algorithm.trains_policy:
                with within(f"{where}.replay.pretraining"):
                    self._load_texts(spec, spec.replay.pretraining, data)
        return _without_held(data, rounds, self.encoder, self.trained_on)

    def _load_prompts(self, spec: RoundConfig, data: RoundData) -> None:
        assert spec.prompts is not None
        prompts = load_prompts(spec.prompts, SCHEMES, spec.name, "new")
        data.prompts[spec.name] = prompts
        if spec.prompts.heldout is None:
            return
        rows = PromptRows(prompts, self._measure(spec))
        division = divide(rows, spec.prompts.heldout)
        sides: tuple[list[Prompt], list[Prompt]] = ([], [])
        for name, prompt in zip(rows.names, prompts, strict=True):
            sides[name in division.held_out].append(prompt)
        where = f"rounds.{spec.name}.prompts.heldout"
        _check_sides(*sides, division, spec.prompts.heldout, where)
        data.prompts[spec.name], data.held_prompts[spec.name] = sides
        data.reports[spec.name] = division.sentence

    def _load_examples(self, spec: RoundConfig, config: ExamplesConfig, data: RoundData) -> None:
        other = None
        if config.heldout_source is not None:
            changes = {
                "source": config.heldout_source,
                "split": config.heldout_split,
                "limit": None,
            }
            other = self._read(spec, config.model_copy(update={**changes, "use": "once"}))
            data.held_out[spec.name] = other.units
            if not config.source:  # The file no longer exists, see `align.store.changes.gone`.
                return
        examples = self._read(spec, config)
        report = str(examples.report)
        units: Sequence[Unit]
        held_units: Sequence[Unit]
        if other is not None:
            units, held_units = examples.units, other.units
            report += f"; held out of {config.heldout_source}: {other.report}"
        else:
            units, held_units, division = self._divided(spec, config, examples)
            where = f"rounds.{spec.name}.data.heldout"
            _check_sides(units, held_units or units, division, config.heldout, where)
            report += f"; {division.sentence}" if division.num_tied else ""
        data.examples[spec.name], data.held_out[spec.name] = units, held_units
        data.prompts[spec.name] = prompts_of(units, self.encoder)
        data.reports[spec.name] = report

    def _load_texts(self, spec: RoundConfig, texts: PretrainingConfig, data: RoundData) -> None:
        loader = self
        if texts.tokens is not None:
            loader = replace(self, context=min(self.context, texts.tokens))
        config = texts.examples
        examples = load_examples(config, "texts", self.encoder, loader.context, spec.name)
        units, held_units, division = loader._divided(spec, config, examples)
        where = f"rounds.{spec.name}.replay.pretraining.heldout"
        _check_sides(units, held_units, division, config.heldout, where)
        data.texts[spec.name], data.held_texts[spec.name] = units, held_units
        before = data.reports.get(spec.name)
        report = f"pre-training texts: {examples.report}"
        data.reports[spec.name] = report if before is None else f"{before}; {report}"

    def _read(self, spec: RoundConfig, config: ExamplesConfig) -> Examples:
        inbox_rows = self.taken.get(spec.name) if config.stream is not None else None
        material = spec.algorithm.material
        return load_examples(config, material, self.encoder, self.context, spec.name, inbox_rows)

    def _divided(
        self, spec: RoundConfig, config: ExamplesConfig, examples: Examples
    ) -> tuple[Sequence[Unit], Sequence[Unit], Division]:
        """Divide units; return those to learn from, the held-out ones, and the division."""
        if not examples.documents or self.windows or config.heldout_of == "windows":
            rows = UnitRows(examples.units, self.encoder, self._measure(spec))
            division = divide(rows, config.heldout)
            return *parted(examples.units, division.held_out), division

        def cut(documents: Sequence[Document]) -> list[Unit]:
            return list(
                windows(
                    documents, self.encoder,
                    context=self.context, round=spec.name, pack=config.pack,
                )
            )  # fmt: skip

        texts = examples.documents
        division = divide(
            DocumentRows(texts, cut, self.encoder, self._measure(spec)), config.heldout
        )
        remaining = cut([text for text in texts if text.name not in division.held_out])
        return remaining, cut([text for text in texts if text.name in division.held_out]), division

    def _measure(self, spec: RoundConfig) -> Measure:
        """Return the overlap measure of a round; it has no items if the suite has prompts of its own."""
        items = 0 if spec.suite.prompts is not None else spec.suite.items
        return Measure(rule=self.rule, units=units_of(self.rule, self.encoder), items=items)


def _check_sides(
    units: Sequence[object],
    held_rows: Sequence[object],
    division: Division,
    share: float,
    where: str,
) -> None:
    if units and held_rows:
        return
    what, remedy = (
        "held out, and none is left to learn from",
        "lower heldout, or give more examples",
    )
    if units:
        what, remedy = "learnt from, and none is held out", "raise heldout, or give more examples"
    if division.num_rows == 1 < len(units) + len(held_rows):
        remedy = "give more documents, or set heldout_of: windows, which is for a single one"
    together = ""
    if division.largest:
        together = (
            f", and {division.largest} of them share runs of words, so that they stay together"
        )
        remedy = "give examples that share fewer words, or name a file to be measured on"
    raise UserError(
        f"all {len(units) or len(held_rows)} examples are {what}",
        where=where,
        cause=f"heldout is {share:g}, and answers to one prompt stay together{together}",
        remedy=remedy,
    )


def pool_hash(pool: Sequence[Prompt | Unit]) -> str:
    """Return the sha256 of the ids in a pool, in order."""
    return hashlib.sha256("\n".join(entry.id for entry in pool).encode()).hexdigest()


def _without_held(
    data: RoundData,
    rounds: Sequence[RoundConfig],
    encoder: PromptEncoder,
    trained_on: Mapping[str, Mapping[str, str]],
) -> RoundData:
    """Return the data without the prompts that another round holds out.

    A pool that an accepted round learnt from stays whole, see `RoundDataLoader.trained_on`.
    """
    names = frozenset(
        prompt_name(p) for held_prompts in data.held_prompts.values() for p in held_prompts
    )
    if not names:
        return data

    def free(prompts: Sequence[Prompt]) -> list[Prompt]:
        return [prompt for prompt in prompts if prompt_name(prompt) not in names]

    whole = {
        name
        for name, pool in data.prompts.items()
        if trained_on.get(name, {}).get("prompts") == pool_hash(pool)
    }
    examples = {
        name: units if name in whole else parted(units, names)[0]
        for name, units in data.examples.items()
    }
    prompts: dict[str, Sequence[Prompt]] = {
        name: pool
        if name in whole
        else prompts_of(examples[name], encoder)
        if name in examples
        else free(pool)
        for name, pool in data.prompts.items()
    }
    general: dict[str, Sequence[Prompt]] = {n: free(pool) for n, pool in data.general.items()}
    for spec in rounds:
        emptied = data.prompts.get(spec.name) and not prompts[spec.name]
        if emptied or (data.general.get(spec.name) and not general[spec.name]):
            source = spec.asks.source if emptied else "its general pool"
            raise UserError(
                f"every prompt of {source!r} is held out by another round",
                where=f"rounds.{spec.name}",
                remedy="name other prompts there",
            )
    return RoundData(
        prompts=prompts,
        held_prompts=data.held_prompts,
        general=general,
        examples=dict(examples),
        held_out=data.held_out,
        texts=data.texts,
        held_texts=data.held_texts,
        reports=data.reports,
        held_names=names,
    )
