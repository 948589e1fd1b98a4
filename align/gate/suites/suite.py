"""The base class of suites: what all kinds of them share, and what each kind has to say of itself."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from align.config.gate import SuiteRole
from align.gate.measurement.results import ItemResults, no_value
from align.gate.measurement.samples import ItemScore
from align.gate.suites.demands import Demands
from align.gate.suites.looks import Early, in_order
from align.gate.suites.scale import Range, ScoreScale
from rollouts.chat.transcript import shown_answer
from rollouts.types import FinishReason, Prompt, Score, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig, RewardConfig
    from align.config.gate import SuiteConfig, SuiteDemands
    from align.gate.overlap import Item, Overlap
    from align.gate.suites.known import KnownSnapshots, NeededFile
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder, Scheme

NO_CONTENT: Mapping[str, Any] = {
    "items": [],
    "metric": [],
    "sampling": None,
    "sequences": (),
    "samples": 1,
}
"""Keys that the content of every suite has, with their values where a kind has no use for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRule:
    """Facts about a suite that a decision needs; stored with every verdict."""

    name: str
    kind: str
    """`Suite.kind` of its class."""
    role: SuiteRole
    margin: float
    """Largest loss against the parent, in units of the metric."""
    budget: float
    """Largest loss against the fixed anchor, over the whole campaign."""
    target_of: str | None
    """The round whose preference this suite measures; None for a capability."""
    hash: str
    demands: Demands = field(default_factory=Demands)
    value_range: Range | None = None
    """Smallest and largest value of the metric; None: not known, or that of the kind."""
    unit: str = ""
    """Unit of the values if it is not that of the kind."""
    early: Early | None = None
    """Size of a suite that may stop early, and is compared by bets; None: all items are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteEntry:
    """Entry of a campaign file that asks for a suite, and everything that the suite is read with."""

    spec: SuiteConfig
    where: str
    """Key of the entry in the file."""
    config: CampaignConfig
    schemes: Mapping[str, Scheme]
    """Readers of ``scheme://`` sources."""
    encoder: PromptEncoder
    context: int | None
    """Prompt plus completion that engines hold, in tokens; None: any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite(ABC):
    """Fixed items, the measure of a snapshot on them, and what may be lost of it.

    A kind is a subclass and a line in `align.gate.suites.kinds.KINDS`. It has to say what its items are
    (`item_ids`, `item_clusters`, `texts`, `chosen`), what decides their values (`content`), how a snapshot
    is measured (`measure`), and how it is made of a campaign file (`of_entry`).
    """

    kind: ClassVar[str]
    """Word for the kind in hashes and verdicts; stores keep it for ever."""
    scale: ClassVar[ScoreScale]
    answers: ClassVar[bool] = False
    """True if it samples answers, which can be cut or left without a score."""
    by_words: ClassVar[bool] = False
    """True if it can be asked in words alone, without the model's tokenizer."""
    has_figures: ClassVar[bool] = False
    """True if further figures stand beside its mean (`ItemResults.beside`)."""
    whole: ClassVar[bool] = False
    """True if its items are always measured all at once."""

    name: str
    role: SuiteRole
    margin: float
    budget: float
    target_of: str | None = None
    cluster: str | None = None
    """Column or kind of what items have in common (`align.gate.suites.sequences`); None: the usual."""
    value_range: Range | None = None
    """Smallest and largest value that can be right; None: not known, or that of the kind."""
    demands: Demands = field(default_factory=Demands)
    """Demands besides the mean."""
    early: Early | None = field(default=None, compare=False)
    """Size of a suite that may stop early; None: all items are measured."""
    positions: tuple[int, ...] | None = None
    """Places of the items in the suite that this is a part of, which decide their seeds; None: all."""
    larger: tuple[str, ...] = field(default=(), compare=False)
    """Hashes of the suite before items of it were retired, the newest first; empty if none were."""
    encoding: str | None = None
    """Digest of the tokenizer and chat template that items are read with; None where the store's hashes
    are older than this."""
    engine: Mapping[str, str] = field(default_factory=dict)
    """Settings of the engines that answer; empty where the store's hashes are older than this."""
    overlap: Overlap | None = field(default=None, repr=False, compare=False)
    """Likeness of its items to what is trained on."""

    @classmethod
    def of_entry(cls, entry: SuiteEntry) -> Self:
        """Read the suite that an entry of a campaign file asks for, where one can ask for the kind.

        Raises:
            UserError: a file cannot be read, or its rows are no items of such a suite.
        """
        raise NotImplementedError(f"no entry of a campaign file asks for a {cls.__name__}")

    @classmethod
    def stated_range(cls, spec: SuiteDemands, metric: Sequence[RewardConfig]) -> Range | None:
        """Return the smallest and largest value as the campaign file states them; None: it does not."""
        return spec.range

    @classmethod
    def stated_tokens(cls, spec: SuiteConfig, max_tokens: int) -> int | None:
        """Return the most tokens of an item, as far as an entry tells; None: it does not.

        Args:
            max_tokens: longest answer.
        """
        return None

    @classmethod
    def reading(cls, spec: SuiteConfig) -> str:
        """Return what a reader has to know to read its scores; empty for most kinds."""
        return ""

    @classmethod
    def side_sentence(cls, results: ItemResults) -> str:
        """Say what `ItemResults.beside` shows; empty if it shows nothing."""
        return ", ".join(f"{name} {value:.3g}" for name, value in results.beside.items())

    @property
    @abstractmethod
    def item_ids(self) -> tuple[str, ...]:
        """Names of the items, in their order."""

    @property
    @abstractmethod
    def item_clusters(self) -> tuple[str, ...]:
        """Labels that items share with others they depend on; empty if every item counts by itself."""

    @abstractmethod
    def content(self) -> Mapping[str, Any]:
        """Return everything of its own that decides a value, as JSON can write it."""

    @abstractmethod
    def texts(self, encoder: PromptEncoder) -> list[Item]:
        """Return the items as texts, which nothing that is trained on may be like."""

    @abstractmethod
    def chosen(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the fields that hold the items, with those at some places alone."""

    @abstractmethod
    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Measure the snapshot whose weights the engine holds.

        Raises:
            RunError: no item has a value, or one that cannot be right.
        """

    @abstractmethod
    def check_fit(self, encoder: PromptEncoder, max_model_len: int) -> None:
        """Raise UserError for an item that engines of this context, in tokens, cannot hold."""

    @abstractmethod
    def probe(self, encoder: PromptEncoder) -> tuple[int, ...]:
        """Return tokens of its first item, to try an engine with."""

    @property
    def metric(self) -> tuple[RewardConfig, ...]:
        """Rewards that score its answers; empty for kinds without."""
        return ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Prompt of every item; empty where items are given token sequences."""
        return ()

    @property
    def pool(self) -> tuple[Prompt, ...]:
        """Every prompt that can become an item, in whatever round."""
        return self.prompts

    @property
    def num_answers(self) -> int:
        """Number of answers that measuring a snapshot samples."""
        return 0

    @property
    def rotates(self) -> bool:
        """True if rounds are measured on other items each."""
        return False

    @property
    def scores_texts(self) -> bool:
        """True if it asks engines for the logprobs of given texts."""
        return False

    @property
    def unit(self) -> str:
        """Unit of the values if it is not that of the kind; else empty."""
        return ""

    @property
    def known_range(self) -> Range | None:
        """Smallest and largest value, as the kind or the campaign file has them; None: not known."""
        return self.value_range or self.scale.range

    @property
    def needs(self) -> Sequence[NeededFile]:
        """Files that other snapshots have to make before it can be measured."""
        return ()

    @property
    def earlier_forms(self) -> Sequence[Suite]:
        """Forms of it that earlier versions measured, and whose results in a store still count."""
        return ()

    def compared(self, known: KnownSnapshots) -> Suite | None:
        """Return the suite with the snapshots that it compares answers with; None: not there yet."""
        return self

    def at(self, index: int) -> Suite:
        """Return the suite as the round with this index is measured on it."""
        return self

    def with_metric(self, metric: Sequence[RewardConfig]) -> Suite:
        """Return the suite scored by rewards whose models are there now; its hash stays."""
        return self

    def close(self) -> None:  # noqa: B027
        """End the worker processes of its metric, where it has one."""

    def part(self, places: Sequence[int]) -> Suite:
        """Return the suite with only the items at these places, each with its seed in the whole."""
        whole = self.positions
        positions = tuple(places) if whole is None else tuple(whole[i] for i in places)
        return replace(self, positions=positions, **self.chosen(places))

    def reduced(self, places: Sequence[int]) -> Suite:
        """Return the suite that is left of this one once its other items are retired."""
        return self.part(places)

    def first(self, count: int) -> Suite:
        """Return the part of the suite that is measured first; itself where that is all of it."""
        if count >= len(self.item_ids):
            return self
        order = in_order(self.name, self.item_ids, self.item_clusters)
        return self.part(sorted(order[:count]))

    def results(
        self,
        snapshot: SnapshotId,
        scores: Sequence[ItemScore] | Sequence[Score],
        tokens: int,
        shown: Sequence[str] = (),
    ) -> ItemResults:
        """Return the results of a snapshot; an item without a value counts as the worst.

        Args:
            tokens: generated or scored.
            shown: prompt of every item for people to look at; empty: none.

        Raises:
            RunError: no item has a value.
        """
        values = [score.value for score in scores if score.value is not None]
        early = self.early
        if not values and (early is None or len(scores) == early.items):
            details = [score.detail for score in scores if score.detail is not None]
            raise no_value(self.name, len(scores), details)
        if early is not None and self.value_range is not None:
            worst = min(0.0, self.value_range[0])  # The same in whatever parts it is measured.
        else:
            worst = min([0.0, *values])
        answers = [score.completion for score in scores if isinstance(score, ItemScore)]
        finishes: tuple[FinishReason, ...] = tuple(answer.finish_reason for answer in answers)
        return ItemResults(
            suite=self.name,
            suite_hash=self.hash,
            snapshot=snapshot,
            item_ids=self.item_ids,
            values=tuple(worst if score.value is None else float(score.value) for score in scores),
            statuses=tuple(score.status for score in scores),
            finishes=finishes or tuple("stop" for _ in scores),
            prompts=tuple(shown),
            answers=tuple(map(shown_answer, answers)),
            clusters=self.item_clusters,
            tokens=tokens,
        )

    def beside(self, whole: ItemResults, parts: Sequence[ItemResults]) -> Mapping[str, float]:
        """Return `ItemResults.beside` of results that were joined from parts: means over the items."""
        items = sum(len(part.item_ids) for part in parts)
        names = [name for name in parts[0].beside if all(name in part.beside for part in parts)]
        return {
            name: sum(part.beside[name] * len(part.item_ids) for part in parts) / items
            for name in names
        }

    @property
    def hash(self) -> str:
        """Sha256 of everything that decides a value; not of margins, which only judge it."""
        content: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "cluster": self.cluster,
            **NO_CONTENT,
            **self.content(),
        }
        if self.encoding is not None:
            content["encoding"] = self.encoding
        if self.engine:
            content["engine"] = dict(self.engine)
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def rule(self) -> SuiteRule:
        """Facts about the suite that a decision needs."""
        return SuiteRule(
            name=self.name,
            kind=self.kind,
            role=self.role,
            margin=self.margin,
            budget=self.budget,
            target_of=self.target_of,
            hash=self.hash,
            demands=self.demands,
            value_range=self.value_range,
            unit=self.unit,
            early=self.early,
        )


def rendered(prompt: Prompt) -> str:
    """Return what makes two prompts the same to a model: the text, or the messages."""
    if prompt.text is not None:
        return prompt.text
    return json.dumps([dict(message) for message in prompt.messages or ()], sort_keys=True)
