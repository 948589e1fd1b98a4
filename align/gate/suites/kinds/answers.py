"""Suites of sampled answers, scored by a metric: any reward can be one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from align.config.data import PromptsConfig
from align.config.gate import SuiteConfig, SuiteDemands
from align.config.rewards import RewardConfig
from align.gate.measurement.results import ItemResults
from align.gate.measurement.samples import episode_figures, merged
from align.gate.suites.demands import metric_range
from align.gate.suites.kinds.acting import SuiteActing, acting_of, placed_rewards
from align.gate.suites.kinds.prompts import PromptSuite, eval_split, is_demo, read_items
from align.gate.suites.rotation import Rotation, check_pool, prompts_wanted, rotation_of
from align.gate.suites.rows_check import check_rows
from align.gate.suites.scale import Range, ScoreScale
from align.gate.suites.suite import SuiteEntry, rendered
from align.settings import stated
from rewards.imports import code_digest
from rollouts.errors import RunError, UserError, within
from rollouts.types import Prompt, RolloutGroup, Sampling, ScoredGroup, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from rewards.rubric import Rubric
    from rollouts.engines.protocol import RolloutEngine
    from rollouts.prompts import PromptEncoder, Scheme


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSuite(PromptSuite):
    """Prompts, how they are answered, and the rewards that score the answers."""

    kind: ClassVar[str] = "items"
    scale: ClassVar[ScoreScale] = ScoreScale(of_metric=True)
    answers: ClassVar[bool] = True
    by_words: ClassVar[bool] = True
    has_figures: ClassVar[bool] = True

    metric: tuple[RewardConfig, ...] = ()
    rubric: Rubric | None = field(default=None, repr=False, compare=False)
    """The metric, built."""
    sampling: Sampling | None = None
    """Sampling of the answers; temperature 0 is greedy."""
    samples: int = 1
    """Completions per item; the item's value is their mean."""
    acting: SuiteActing | None = field(default=None, repr=False, compare=False)
    """Environments that the items are acted on in; None: every answer is one turn."""
    rotation: Rotation | None = field(default=None, repr=False, compare=False)
    """Pool that every round takes other items of; ``prompts`` are those of one round. None: they stay."""

    @classmethod
    def of_entry(cls, entry: SuiteEntry) -> Self:
        """Read the prompts, and build the metric."""
        spec, where = entry.spec, entry.where
        source = spec.prompt_source
        assert source is not None and spec.metric is not None, "the check of the source"
        suite = cls(
            name=spec.name,
            role=spec.role,
            margin=spec.margin,
            budget=entry.config.gate.budget_of(spec),
            metric=(spec.metric,),
            sampling=spec.sampling(spec.max_tokens or entry.config.defaults.sampling.max_tokens),
            samples=spec.samples,
            **cls.own_fields(entry),
        )
        suite = replace(suite, **_items_of(spec, source, entry))
        acting = acting_of(spec, where, suite.pool, {f"{where}.metric": spec.metric}, entry.context)
        suite = replace(suite, acting=acting)
        return suite.with_rubric(source, f"{where}.metric", f"{where}.prompts")

    @classmethod
    def own_fields(cls, entry: SuiteEntry) -> dict[str, Any]:
        """Return the fields of the kind that other suites of answers do not have."""
        return {}

    @classmethod
    def of_round(
        cls,
        spec: RoundConfig,
        index: int,
        schemes: Mapping[str, Scheme],
        held_prompts: Sequence[Prompt] | None = None,
        context: int | None = None,
    ) -> Self:
        """Make the suite of a round's own rewards, in the round's environments.

        Args:
            held_prompts: prompts that the round holds out of its own; None: it has others.
            context: tokens that engines read; None: any.

        Raises:
            UserError: there are no prompts to measure it on, or too few.
        """
        settings, where = spec.suite, f"rounds.{index}.suite.prompts"
        source = None
        if held_prompts is not None:
            where = f"rounds.{index}.prompts.heldout"
            prompts = _held_items(spec, held_prompts, where)
        else:
            source = _held_source(spec, where)
            prompts = read_items(spec.name, source, settings.items, schemes, spec.name, where)
        suite = cls(
            name=spec.name,
            role="gate",
            margin=settings.margin,
            budget=settings.budget if settings.budget is not None else 2 * settings.margin,
            target_of=spec.name,
            prompts=prompts,
            metric=spec.rewards,
            sampling=settings.sampling(
                settings.max_tokens or spec.sampling.max_tokens, spec.sampling.stop
            ),
            samples=settings.samples,
            acting=acting_of(
                spec, f"rounds.{index}", prompts, placed_rewards(spec, index), context
            ),
        )
        return suite.with_rubric(source, f"rounds.{index}.rewards", where)

    @classmethod
    def stated_range(cls, spec: SuiteDemands, metric: Sequence[RewardConfig]) -> Range | None:
        """Return the range of the metric, as stated or as known of a shipped one."""
        return metric_range(spec, metric)

    @classmethod
    def stated_tokens(cls, spec: SuiteConfig, max_tokens: int) -> int | None:
        """Return the longest answer."""
        return max_tokens

    @property
    def pool(self) -> tuple[Prompt, ...]:
        """Every prompt that can become an item, in whatever round."""
        return self.prompts if self.rotation is None else self.rotation.pool

    @property
    def num_answers(self) -> int:
        """Number of completions that are sampled for all items."""
        return len(self.prompts) * self.samples

    @property
    def rotates(self) -> bool:
        """True if rounds are measured on other items each."""
        return self.rotation is not None

    def content(self) -> Mapping[str, Any]:
        """Return the prompts with their columns, the metric, and how answers are sampled."""
        return {
            "items": [
                [p.id, rendered(p), dict(p.columns), *filter(None, [dict(p.chat_template_kwargs)])]
                for p in self.prompts
            ],
            "metric": [_metric_content(spec) for spec in self.metric],
            "sampling": None if self.sampling is None else _sampling_content(self.sampling),
            "samples": self.samples,
            **({} if self.acting is None else {"acting": self.acting.content}),
        }

    def at(self, index: int) -> AnswerSuite:
        """Return the suite with the items of the round with this index."""
        if self.rotation is None:
            return self
        return replace(self, prompts=self.rotation.items(index))

    def check_fit(self, encoder: PromptEncoder, max_model_len: int) -> None:
        """Raise UserError for a prompt that leaves no room for its answer."""
        from rollouts.collect import check_lengths
        from rollouts.episodes.ticket import check_episodes

        if self.sampling is not None:
            max_tokens = self.sampling.max_tokens
            acting = encoder.acting_in(None if self.acting is None else self.acting.environments)
            where = f"suite {self.name!r}"
            if acting is not None:
                check_episodes(acting, self.pool, encoder, where)
            check_lengths(self.pool, encoder, max_tokens, max_model_len, where, acting)

    def measure(
        self, engine: RolloutEngine, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
    ) -> ItemResults:
        """Sample answers to every prompt and score them."""
        return self.measured(self.sampled(engine, encoder, snapshot, seed, self.samples), snapshot)

    def measured(self, groups: Sequence[RolloutGroup], snapshot: SnapshotId) -> ItemResults:
        """Score the answers of a snapshot to every prompt.

        Raises:
            RunError: no item has a value, or one that cannot be right.
        """
        try:
            scores = merged(self.score(groups), self.value_range)
        except ValueError as error:
            raise RunError(
                f"a value of the metric cannot be right: {error}",
                where=f"suite {self.name!r}",
                cause="the metric has a fault, or the suite's range is not the metric's",
                remedy="correct the metric, or state the range of its values in the suite",
            ) from error
        tokens = sum(c.num_sampled for group in groups for c in group.completions_G)
        results = self.results(snapshot, scores, tokens, self.shown)
        return replace(results, beside=episode_figures(groups))

    def sampled(
        self,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        snapshot: SnapshotId,
        seed: int,
        samples: int,
    ) -> list[RolloutGroup]:
        """Sample answers of the snapshot whose weights the engine holds, ``samples`` to each prompt."""
        from rollouts.collect import collect

        if self.sampling is None:
            raise ValueError(f"suite {self.name!r} has no sampling")
        try:
            return collect(
                engine,
                self.prompts,
                [samples] * len(self.prompts),
                encoder,
                self.sampling,
                seed=seed,
                policy=snapshot,
                positions=self.positions,
                environments=None if self.acting is None else self.acting.environments,
            )
        finally:
            if self.acting is not None:
                self.acting.release()

    def score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Score the completions of some items by the metric."""
        if self.rubric is None:
            raise ValueError(f"suite {self.name!r} has no rubric")
        return self.rubric.score(groups)

    def with_metric(self, metric: Sequence[RewardConfig]) -> AnswerSuite:
        """Return the suite scored by rewards whose models are there now; its hash stays."""
        from rewards.rubric import build_rubric

        return replace(self, rubric=build_rubric([spec.absolute for spec in metric]))

    def close(self) -> None:
        """End the worker processes of the metric and of environments."""
        if self.rubric is not None:
            self.rubric.close()
        if self.acting is not None:
            self.acting.environments.shutdown()

    def with_rubric(self, source: PromptsConfig | None, where: str, from_: str) -> Self:
        """Return the suite with its metric built, after a check that all items have the columns it needs.

        Args:
            source: file whose rows are checked; None: the prompts alone are.
            where: key of the metric.
            from_: key of the prompts.

        Raises:
            UserError: a row lacks a column, or two rows are the same to the metric.
        """
        from rewards.rubric import build_rubric
        from rewards.signatures.signature import required_columns

        rubric = build_rubric([spec.absolute for spec in self.metric], where)
        needed = {column for part in rubric.parts for column in required_columns(part)}
        if source is not None:
            check_rows(
                source,
                sorted(needed - set(self.stand_ins)),
                self.name,
                from_,
                reads=lambda column: any(part.takes.take(column) for part in rubric.parts),
            )
        rubric.check_columns(
            [replace(p, columns={**p.columns, **self.stand_ins}) for p in self.pool]
            if self.stand_ins
            else self.pool,
            where,
        )
        return replace(self, rubric=rubric)

    @property
    def stand_ins(self) -> Mapping[str, Any]:
        """Columns that the metric is given besides those of the prompts, with values to check it by."""
        return {}


def _items_of(spec: SuiteConfig, source: PromptsConfig, entry: SuiteEntry) -> dict[str, Any]:
    """Return the fields of the prompts: all that there are, and those of the first round if they rotate."""
    turn, where = spec.rotate, f"{entry.where}.prompts"
    if turn is None:
        held_out = eval_split(source, spec.items, forced=False)
        items = read_items(spec.name, held_out, spec.items, entry.schemes, None, where)
        return {"prompts": items}
    from rollouts.prompts import load_prompts

    wanted = prompts_wanted(spec.items, turn.share, turn.bridge, entry.config.gate.campaign_rounds)
    held_out = eval_split(source, wanted, forced=False)
    with within(where):
        pool = load_prompts(held_out, entry.schemes, None, "general")
    rotation = rotation_of(
        pool,
        spec.items,
        turn.share,
        turn.bridge,
        seed=f"{entry.config.seed}/{spec.name}",
    )
    check_pool(rotation, spec.name, where)
    return {"prompts": rotation.items(0), "rotation": rotation}


def _held_source(spec: RoundConfig, where: str) -> PromptsConfig:
    """Return the source that a round is measured on, where it holds none of its suite prompts out."""
    suite = spec.suite
    if suite.prompts is not None:
        return eval_split(suite.prompts, suite.items, forced=False)
    if spec.prompts is not None and is_demo(spec.prompts.source):
        return eval_split(spec.prompts, suite.items, forced=True)
    raise UserError(
        f"round {spec.name!r} trains on {spec.asks.source!r} and has no prompts to be measured on",
        where=where,
        cause="only demo:// sources come with an eval split of their suite",
        remedy="hold a share of them out of training, prompts: {source: ..., heldout: 0.1}, or keep at "
        f"least {suite.items} of its prompts out of training yourself and name them in {where}",
    )


def _held_items(
    spec: RoundConfig, held_prompts: Sequence[Prompt], where: str
) -> tuple[Prompt, ...]:
    """Return at most ``suite.items`` of the held-out prompts; exactly as many if the file sets it."""
    items = spec.suite.items
    if spec.suite.changed("items") and len(held_prompts) < items:
        raise UserError(
            f"suite {spec.name!r} asks for {items} items and {len(held_prompts)} prompts are held out",
            where=where,
            remedy=f"raise heldout, or set suite.items to {len(held_prompts)} or less",
        )
    return tuple(held_prompts[:items])


def _sampling_content(sampling: Sampling) -> list[Any]:
    bounds = [sampling.min_p, sampling.stop_texts] if sampling.has_bounds else []
    return [
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        sampling.stop_token_ids,
        *bounds,
    ]


def _metric_content(spec: RewardConfig) -> list[Any]:
    """Return a reward by name and options; one of a person's own by its code too."""
    code = code_digest(spec.name)
    shape = [spec.shape] if spec.shape else []
    return [stated(spec.name), spec.weight, spec.part, stated(spec.options), code, *shape]
