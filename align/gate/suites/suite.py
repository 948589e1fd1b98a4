"""One suite: fixed items, how an answer to each becomes a value, and what may be lost of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.config.campaign import RewardConfig
from align.config.gate import SuiteRole
from align.gate.suites.demands import Demands
from align.gate.suites.looks import Early, in_order
from align.gate.suites.rotation import Rotation
from align.gate.suites.sequences import TokenPair
from align.settings import stated
from rollouts.types import Prompt, RolloutGroup, Sampling, ScoredGroup

if TYPE_CHECKING:
    from align.gate.overlap import Overlap
    from align.gate.suites.harness.task import HarnessTask
    from align.gate.suites.implicit import Reference
    from align.gate.suites.win_rate import Duel
    from rewards.rubric import Rubric

Kind = Literal["items", "likelihood", "pairs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRule:
    """What a decision needs to know of a suite; stored with every verdict."""

    name: str
    kind: Kind
    role: SuiteRole
    margin: float
    """Largest loss against the parent, in units of the metric."""
    budget: float
    """Largest loss against the fixed anchor, over the whole campaign."""
    target_of: str | None
    """The round whose preference this suite measures; None for a capability."""
    hash: str
    demands: Demands = field(default_factory=Demands)
    value_range: tuple[float, float] | None = None
    """Smallest and largest value of the metric; None: not known."""
    unit: str = ""
    """Unit of the values of a harness task; empty: as is usual for the kind."""
    early: Early | None = None
    """Size of a suite that may stop early, and is compared by bets; None: all items are measured."""

    @property
    def value_unit(self) -> str:
        """Unit of a value, such as nats; empty for a reward."""
        return self.unit or ("nats" if self.kind == "likelihood" else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One suite: fixed items and how a completion of each is scored."""

    name: str
    kind: Kind
    role: SuiteRole
    margin: float
    budget: float
    target_of: str | None = None
    prompts: tuple[Prompt, ...] = ()
    """Of an items suite."""
    metric: tuple[RewardConfig, ...] = ()
    rubric: Rubric | None = field(default=None, repr=False, compare=False)
    """Built from ``metric``."""
    sampling: Sampling | None = None
    """Temperature 0 is greedy."""
    samples: int = 1
    """Completions per item, whose mean is its value."""
    cluster: str | None = None
    """Column or kind of what items have in common (`align.gate.suites.sequences`); None: the usual."""
    value_range: tuple[float, float] | None = None
    """Outside of it no value of the metric can be right; None: not known."""
    sequences: tuple[TokenPair, ...] = ()
    """Prompt and completion of what is scored, not sampled. Of pairs: better, worse, better, ..."""
    sequence_ids: tuple[str, ...] = ()
    """Names of the items of a suite of sequences."""
    sequence_places: tuple[str, ...] = field(default=(), compare=False)
    """File and line of every sequence item; empty if they are not known."""
    sequence_clusters: tuple[str, ...] = field(default=(), compare=False)
    """Document or prompt of every sequence item; empty: every item counts by itself."""
    demands: Demands = field(default_factory=Demands)
    """What is asked besides the mean."""
    every: int | None = None
    """Of a sealed suite: accepted rounds between two openings."""
    rotation: Rotation | None = field(default=None, repr=False, compare=False)
    """Where the items change: ``prompts`` are those of one round."""
    early: Early | None = field(default=None, compare=False)
    """Size of a suite that may stop early; None: all items are measured."""
    positions: tuple[int, ...] | None = None
    """Of a part of a suite: places of its items in the whole, which decide their seeds."""
    implicit: bool = False
    """True if pairs are compared by their log ratios to the round's reference, not by likelihood."""
    reference: Reference | None = field(default=None, repr=False)
    """The round's reference; None before it is known, or if pairs go by likelihood."""
    duel: Duel | None = None
    """Of a win rate: whom the answers are compared with."""
    harness: HarnessTask | None = field(default=None, repr=False, compare=False)
    """Of a harness task: who asks and scores; ``prompts`` are its documents, for people and the overlap."""
    encoding: str | None = None
    """Digest of the tokenizer and chat template that items are read with; None where the store's hashes
    are older than this."""
    engine: Mapping[str, str] = field(default_factory=dict)
    """Settings of the engines that answer; empty where the store's hashes are older than this."""
    overlap: Overlap | None = field(default=None, repr=False, compare=False)
    """What it has in common with what is trained on."""

    @property
    def item_ids(self) -> tuple[str, ...]:
        if self.kind == "items":
            return tuple(prompt.id for prompt in self.prompts)
        return self.sequence_ids

    @property
    def item_clusters(self) -> tuple[str, ...]:
        """Labels that items share with others they depend on; empty if every item counts by itself."""
        if self.kind == "items":
            return tuple(str(p.columns[self.cluster]) for p in self.prompts if self.cluster)
        return self.sequence_clusters

    @property
    def pool(self) -> tuple[Prompt, ...]:
        """Every prompt that can become an item, in whatever round."""
        return self.prompts if self.rotation is None else self.rotation.pool

    def at(self, index: int) -> Suite:
        """The suite as the round with this index is measured on it."""
        if self.rotation is None:
            return self
        return replace(self, prompts=self.rotation.items(index))

    def part(self, places: Sequence[int]) -> Suite:
        """Return the suite with only the items at these places, each with its seed in the whole."""
        size = len(self.sequences) // max(1, len(self.sequence_ids))

        def chosen(column: Sequence[str]) -> tuple[str, ...]:
            return tuple(column[i] for i in places) if column else ()

        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in places if self.prompts),
            sequences=tuple(s for i in places for s in self.sequences[i * size : (i + 1) * size]),
            sequence_ids=chosen(self.sequence_ids),
            sequence_places=chosen(self.sequence_places),
            sequence_clusters=chosen(self.sequence_clusters),
            positions=tuple(places)
            if self.positions is None
            else tuple(self.positions[i] for i in places),
        )

    def first(self, count: int) -> Suite:
        """Return the part of the suite that is measured first; itself where that is all of it."""
        if count >= len(self.item_ids):
            return self
        order = in_order(self.name, self.item_ids, self.item_clusters)
        return self.part(sorted(order[:count]))

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """What the completions of some items are worth: to the metric, or beside another snapshot's."""
        if self.rubric is None:
            raise ValueError(f"suite {self.name!r} has no rubric")
        if self.duel is not None:
            return self.duel.score(groups, self.rubric)
        return self.rubric.score(groups)

    @property
    def hash(self) -> str:
        """sha256 of everything that decides a value; not of margins, which only judge it."""
        sampling = self.sampling
        content: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "items": [[p.id, rendered(p), dict(p.columns)] for p in self.prompts],
            "metric": [_metric_content(spec) for spec in self.metric],
            "sampling": None
            if sampling is None
            else [
                sampling.max_tokens,
                sampling.temperature,
                sampling.top_p,
                sampling.top_k,
                sampling.stop_token_ids,
                *([sampling.min_p, sampling.stop_texts] if sampling.has_bounds else []),
            ],
            "sequences": self.sequences,
            "samples": self.samples,
            "cluster": self.cluster,
        }
        if self.encoding is not None:
            content["encoding"] = self.encoding
        if self.engine:
            content["engine"] = dict(self.engine)
        if self.implicit:
            content["implicit"] = self.reference.weights if self.reference else ()
        if self.duel is not None:
            content["against"] = self.duel.comparator
        if self.harness is not None:
            content["harness"] = self.harness.digest
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def rule(self) -> SuiteRule:
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
            unit="" if self.harness is None else self.harness.unit,
            early=self.early,
        )


def rendered(prompt: Prompt) -> str:
    """What makes two prompts the same to a model: the text, or the messages."""
    if prompt.text is not None:
        return prompt.text
    return json.dumps([dict(message) for message in prompt.messages or ()], sort_keys=True)


def _metric_content(spec: RewardConfig) -> list[Any]:
    """A reward by name and options; one that lives in a file also by that file's bytes."""
    file = Path(spec.name.rpartition(":")[0])
    code = None
    if file.suffix == ".py" and file.is_file():
        code = hashlib.sha256(file.read_bytes()).hexdigest()
    shape = [spec.shape] if spec.shape else []
    return [stated(spec.name), spec.weight, spec.part, stated(spec.options), code, *shape]
