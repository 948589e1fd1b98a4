"""Suites of a campaign file: what a candidate is measured on, and what it must not lose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from align.config.data import Prompts, PromptsConfig, sourced
from align.config.episodes.rules import check_acting_suite, with_environment_metric
from align.config.episodes.settings import ActingSettings, without_acting
from align.config.learning import StopTexts
from align.config.rewards import Reward, RewardConfig
from align.settings import InputPath, Name, Settings, without_unset
from rollouts.types import Sampling

Family = Literal["general", "instruction", "safety"]
"""Suites of different families are told apart and never averaged together."""

Share = Annotated[float, Field(gt=0, lt=1)]


class AnswerSampling(Settings):
    """Sampling of answers that are measured or served, and not learned from."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Sample from so many of the likeliest tokens; -1 and 0: from all."""
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Sample from tokens with at least this share of the likeliest one's probability."""
    stop: StopTexts = ()
    """Texts, or one of them, that end an answer, which is cut before the first of them."""

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.temperature == 0.0 and (name := self.changed("top_p", "top_k", "min_p")):
            raise ValueError(
                f"{name} is set and temperature is 0, which always takes the likeliest token; set "
                f"temperature above 0, or remove {name}"
            )
        return self

    def sampling(self, max_tokens: int, stop: tuple[str, ...] = ()) -> Sampling:
        """Return the request for answers of at most ``max_tokens`` tokens.

        Args:
            stop: texts that end an answer where none are stated here.
        """
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k or -1,
            min_p=self.min_p,
            stop_texts=self.stop or stop,
        )


class SuiteDemands(AnswerSampling):
    """Shared by the suites of capabilities and those of rounds."""

    family: Family = "general"
    """Reported apart from the other families."""
    best_margin: Annotated[float, Field(gt=0)] | None = None
    """Largest loss against the best snapshot so far; None: as much as the budget. The best of many equal
    snapshots is the luckiest: held to ``margin`` against it, candidates that change nothing are refused."""
    zero_tolerance: tuple[str, ...] | Literal["all"] = ()
    """Ids of items that must not fail once they passed (a value of 1 or more), under the parent or the
    anchor; ``all``: every item."""
    truncation_margin: Share | None = None
    """Largest rise of the share of answers cut at max_tokens, against the parent; None: ``margin`` as a
    share of the metric's range, 0.05 where that range is not known."""
    failure_margin: Share | None = None
    """The same of the share of answers that the metric could not score."""
    range: tuple[float, float] | None = None
    """Smallest and largest value the metric may return: another one stops the round. None: 0 and 1 for a
    shipped metric that has this range, else not checked."""
    system: str | None = None
    """System message of the suite's prompts; None: that of its prompts, or of the policy. Prompts with a
    system message of their own are refused."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the chat template for the suite's prompts, over those of the policy."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions per item, whose mean is the item's value: more are less noise, not more items."""
    cluster: str | None = None
    """Column that names what items have in common, such as their source: a verdict then rests on clusters,
    however alike the items of one are. None: items of prompts count by themselves, pairs and examples come
    in clusters by their prompt, windows by their document; ``item`` or ``window`` takes them one by one."""

    @property
    def chat_setting(self) -> str | None:
        """First setting of chats that is set; None if there is none."""
        if self.system is not None:
            return "system"
        return "chat_template_kwargs" if self.chat_template_kwargs else None

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        return without_unset(dump(self), ("system", "chat_template_kwargs"))

    @model_validator(mode="after")
    def _demands(self) -> Self:
        if self.range is not None:
            low, high = self.range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"range is {low:g} to {high:g}; give a smaller and a larger number"
                )
        if self.samples > 1 and self.temperature == 0.0:
            raise ValueError(
                f"samples is {self.samples} and temperature 0: all completions of an item would be the "
                "same; set temperature above 0, or samples to 1"
            )
        return self


class HarnessConfig(Settings):
    """Task of lm-evaluation-harness in a local folder, its data, and the metric that counts."""

    task: Annotated[str, Field(min_length=1)]
    """Name of one task, as ``task:`` in its YAML file."""
    include_path: Annotated[InputPath, Field(min_length=1)] | None = None
    """Folder with the task files; those below it are found too, and nothing is looked up elsewhere. None:
    the tasks that come with Keel."""
    data_files: dict[str, InputPath | tuple[InputPath, ...]] = Field(default_factory=dict)
    """Local files by split, in place of the data set that the task names: ``{test: gsm8k.jsonl}``."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before every item; None: as the task says."""
    metric: str | None = None
    """The metric whose value per item is compared; None: the task's first."""
    filter: str | None = None
    """The filter of the answers that it is taken after; None: the task's first."""
    chat_template: bool = False
    """Ask in the turns of the model's chat template; without, in plain text."""
    allow_code: bool = False
    """Let the task's files run code, as ``!function`` and ``unsafe_code`` do. Read them first. It runs in a
    process of its own, without secrets."""
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for such code to load the task, to build its questions, and to judge each document."""

    @model_serializer(mode="wrap")
    def _without_deadline(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual deadline: stores that are older than the setting have no such key."""
        values: dict[str, Any] = dump(self)
        if self.deadline_s == type(self).model_fields["deadline_s"].default:
            values.pop("deadline_s", None)
        return values


LengthUnit = Literal["none", "tokens", "bytes"]
"""Length that log-likelihoods of choices are divided by before they are compared; ``none``: by nothing."""


class CalibrationConfig(PromptsConfig):
    """Multiple-choice items: rows with a prompt, its choices and the index of the right one."""

    choices: str = "choices"
    """Column with the list of choices, each as it follows the prompt, with its space where it needs one."""
    answer: str = "answer"
    """Column with the index of the right choice; 0 is the first."""
    normalise: LengthUnit = "none"
    """Length that a choice's log-likelihood is divided by: long choices are less likely as they are."""
    bins: Annotated[int, Field(ge=1)] = 15
    """Bins of equal width of the expected calibration error, which is shown and decides nothing."""

    @model_validator(mode="after")
    def _measured_whole(self) -> Self:
        if self.heldout is not None:
            raise ValueError(
                f"heldout is {self.heldout:g}: a suite is measured on all its items, and only a round "
                "holds some of its own out of training; remove it"
            )
        if self.source.startswith("demo://"):
            raise ValueError(
                f"{self.source!r} holds prompts and no choices; name a file whose rows have prompt, "
                "choices and answer"
            )
        return self


Spending = Literal["campaign", "recycle", "window", "forever"]
"""Set of decisions that share alpha, see `align.gate.statistics.alpha`."""
Stopping = Literal["fixed", "sequential"]
"""Items of a candidate that are measured: all, or as many as it takes to decide
(`align.gate.statistics.betting`).
"""
SuiteRole = Literal["gate", "watch", "sealed"]
"""Role of a suite in a verdict: it decides, it is only shown, or it is sealed for a while."""


class RotationConfig(Settings):
    """Items that change from round to round, so that no choice is fitted to them."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the items that change at all; the others stay for the whole campaign."""
    bridge: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the changing items that stay from one round to the next."""


class OverlapConfig(Settings):
    """Rule by which an item counts as trained on, even if it is no training prompt itself."""

    ngram: Annotated[int, Field(ge=2)] | None = 13
    """Words, or tokens, of the runs that are looked for; None: only whole prompts are."""
    unit: Literal["words", "tokens"] = "words"
    """``tokens`` with an ``ngram`` of 8 or so, where texts are short."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of an item's runs in one training text at which the item is refused. Runs that several items of
    the suite have are its template and do not count; an item without other runs is compared whole."""


class RoundSuiteConfig(SuiteDemands):
    """The suite an accepted round leaves behind: its own reward on held-out prompts."""

    prompts: Prompts | None = None
    """Prompts of the suite; None takes the ``eval`` split of a demo source. Files need their own held-out
    prompts."""
    items: Annotated[int, Field(ge=1)] = 1500
    """Prompts used, of those held out."""
    margin: Annotated[float, Field(gt=0)] = 0.05
    """Largest loss a later round may cause against its parent."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss over the whole campaign against this round's own snapshot; None: twice the margin."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, in tokens; None: as in training."""
    pairs: Literal["implicit_reward", "likelihood"] = "implicit_reward"
    """The score of held-out pairs: log ratios to the round's reference, which DPO and its kin raise, or
    mean logprobs per token, which they may lower for both answers; these are shown beside. Losses
    without a reference, and suites that the store has measured so before, go by likelihood."""


SOURCES = ("prompts", "text", "harness", "calibration")
"""Settings of which a suite has exactly one, and which names its kind."""


class SuiteConfig(SuiteDemands, ActingSettings):
    """A capability that every candidate is measured on; one of `SOURCES` says by what kind of suite."""

    name: Name
    """Unique among rounds and suites."""
    prompts: Prompts | None = None
    metric: Reward | None = None
    """Scores each completion; any reward can be one."""
    text: InputPath | None = None
    """A text file: the score is the mean logprob per token of its windows, in nats."""
    window: Annotated[int, Field(ge=8)] = 256
    """Tokens per item of a text suite."""
    harness: HarnessConfig | None = None
    """A task of the lm-evaluation-harness, which brings its items and its metric."""
    calibration: Annotated[CalibrationConfig, BeforeValidator(sourced)] | None = None
    """Multiple-choice items, measured by the probabilities of their choices (Brier score)."""
    items: Annotated[int, Field(ge=1)] = 1500
    """Items used; a source with fewer is an error. With the default margin and budget, six suites of so
    many items let an equal candidate of the last of ten declared rounds pass with a chance above .9."""
    margin: Annotated[float, Field(gt=0)] = 0.05
    """Largest loss against the parent, in units of the metric. Where none is stated and the budget is
    below .1, half of the budget."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss against the campaign's start; None takes ``gate.total_budget``."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, in tokens; None takes ``defaults.sampling.max_tokens``, or a harness task's own."""
    role: SuiteRole = "gate"
    """``watch``: measured and shown, never decides. ``sealed``: measured, and neither shown nor deciding;
    opened after every so many accepted rounds, to propose going back if what it measures was lost."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Accepted rounds between two openings of a sealed suite."""
    rotate: RotationConfig | None = None
    """Measure every round on partly other items of a larger source."""
    against: Annotated[str, Field(pattern=r"^(base|parent|round:.+)$")] | None = None
    """Win rate: the metric compares each answer with that snapshot's, in both orders; a tie is half."""
    composes: tuple[str, str] | None = None
    """The two rounds whose skills each of its items needs at once, for the composition gap among the
    summary numbers."""

    @property
    def metrics(self) -> tuple[RewardConfig, ...]:
        """Rewards that score its answers; empty for kinds without."""
        return () if self.metric is None else (self.metric,)

    @property
    def prompt_source(self) -> PromptsConfig | None:
        """Source that its items' prompts are read from; None for items of another make."""
        source = self.prompts or self.calibration
        return None if source is None else source.with_chat(self.system, self.chat_template_kwargs)

    @property
    def calibrated(self) -> CalibrationConfig | None:
        """Source of multiple-choice items with the suite's chat settings; None for other suites."""
        source = self.calibration
        if source is None:
            return None
        return source.with_chat(self.system, self.chat_template_kwargs)

    @property
    def renders_chats(self) -> bool:
        """True if the model's chat template is asked for by the task, not by the prompts."""
        return self.harness is not None and self.harness.chat_template

    @property
    def source(self) -> str:
        """Setting that asks for the suite's kind; ``corpus`` for prompts with a corpus metric."""
        if self.against is None and self.metric is not None and self.metric.is_corpus:
            return "corpus"
        names = ("against", *SOURCES)
        return next(name for name in names if getattr(self, name) is not None)

    @model_serializer(mode="wrap")
    def _without_younger(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        values = without_unset(dump(self), ("system", "chat_template_kwargs"))
        return without_acting(self, values)

    @model_validator(mode="after")
    def _score_environment(self) -> Self:
        """Measure by the reward of the environment where no metric is named."""
        check_acting_suite(self)
        self.__dict__["metric"] = with_environment_metric(self)
        return self

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if sum(getattr(self, name) is not None for name in SOURCES) != 1:
            raise ValueError(
                "a suite has prompts (with a metric), text, harness or calibration; set exactly one"
            )
        if self.prompts is not None and self.prompts.heldout is not None:
            raise ValueError(
                f"prompts.heldout is {self.prompts.heldout:g}: a suite is measured on all its prompts, and "
                "only a round holds some of its own out of training; remove it"
            )
        if (self.prompts is None) != (self.metric is None):
            raise ValueError(
                "a suite over prompts needs a metric; text and calibration take none, and a harness task's "
                "is harness.metric"
            )
        bounds = self.changed("top_p", "top_k", "min_p", "stop")
        if self.harness and (
            self.samples > 1 or self.temperature or bounds or "window" in self.model_fields_set
        ):
            raise ValueError(
                "a harness task says itself how it samples; remove samples, temperature and window, and "
                "set generation_kwargs and repeats in its file"
                if bounds is None
                else f"a harness task says itself how it samples; remove {bounds}, and set "
                "generation_kwargs in its file"
            )
        chat = self.chat_setting
        if self.calibration:
            chat = "chat_template_kwargs" if self.chat_template_kwargs else None
        if self.prompts is None and chat is not None:
            raise ValueError(
                f"{chat} is for a suite of prompts, and this one has {self.source}; remove it, or set "
                f"policy.{chat} for the whole campaign"
            )
        if self.text and bounds:
            raise ValueError(f"a text suite samples nothing; remove {bounds}")
        sampled = (
            "temperature", "top_p", "top_k", "min_p", "stop", "samples", "max_tokens", "window", "range",
            "zero_tolerance", "truncation_margin", "failure_margin",
        )  # fmt: skip
        if self.calibration and (name := self.changed(*sampled)):
            raise ValueError(
                f"a calibration suite scores given choices and samples nothing; remove {name}"
            )
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if (self.role == "sealed") != (self.every is not None):
            raise ValueError(
                f"role is {self.role} and every is {self.every or 'not set'}: a sealed suite says after "
                "how many accepted rounds it is opened, and no other does; set role: sealed and every: 5, "
                "say"
            )
        if self.rotate and (self.prompts is None or self.role == "sealed" or self.against):
            raise ValueError(
                "rotate is for suites of prompts whose answers are scored one by one and every round; "
                "remove rotate, or text, against and role: sealed"
            )
        if self.against and (self.prompts is None or self.role == "sealed"):
            raise ValueError(
                "against is for suites of prompts that are looked at every round; remove against, or "
                "text and role: sealed"
            )
        return self


class GateConfig(Settings):
    """Conditions under which a candidate becomes production."""

    mode: Literal["enforce", "observe"] = "enforce"
    """Effect of a verdict: ``enforce`` rejects the candidate, ``observe`` records the verdict and
    accepts."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over the whole campaign, of accepting a loss as large as a margin."""
    campaign_rounds: Annotated[int, Field(ge=1)] = 10
    """Number of rounds that alpha is spread over; more decisions leave less alpha for each."""
    spending: Spending | None = None
    """Decisions that share alpha. ``campaign``: those of the declared rounds; later rounds are stricter and
    exceed it. ``recycle``: the same, and what a decision that accepted was allowed passes on to the next;
    of all together, none lets a loss through with a chance above alpha. ``window``: those of any
    ``campaign_rounds`` rounds in a row, without end. ``forever``: all decisions without end, so that they
    get stricter fast. None: ``window`` with rounds of a template, else ``recycle`` where suites stop early
    and ``campaign`` where they do not."""
    stopping: Stopping = "fixed"
    """``sequential``: a suite of pass/fail items, of scores with a known range or of pairs is measured in
    batches, in random order, and no further once it is decided against every comparator. ``fixed``: all
    items of every suite are measured."""
    max_looks: Annotated[int, Field(ge=1)] = 24
    """Batches that a suite which may stop early is measured in, at most. After each the gate looks at it,
    and engines that switch between snapshots load weights: fewer looks save loads, more save items."""
    total_budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss of a suite against the campaign's start, whatever the number of rounds. None: twice the
    suite's margin, since after ten rounds more than four times as many answers differ from the start's as
    from the parent's, and the same items have to show both."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """Difference by which the candidate must be better than its parent at the round's target."""
    assumed_change: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of items that two equal snapshots answer differently, or variance of a score's difference. It
    only plans power until the number is measured; verdicts do not use it."""
    underpowered: Literal["refuse", "warn"] = "refuse"
    """Reaction to a campaign whose suites have too few items for their margins, so that an equal
    candidate would fail more often than not."""
    overlap: OverlapConfig = OverlapConfig()
    """Largest overlap of suites with the training data."""

    def budget_of(self, suite: SuiteConfig) -> float:
        """Return the largest loss of a suite against the campaign's start."""
        stated = suite.budget if suite.budget is not None else self.total_budget
        return 2.0 * suite.margin if stated is None else stated

    def fitted(self, suites: Sequence[SuiteConfig]) -> tuple[SuiteConfig, ...]:
        """Return suites of which those that state no margin have one of at most half of their budget."""
        return tuple(
            with_margin(suite, min(suite.margin, 0.5 * self.budget_of(suite))) for suite in suites
        )


def with_margin(suite: SuiteConfig, margin: float) -> SuiteConfig:
    """Return a suite with another margin unless it states one; the margin counts as not stated."""
    if "margin" in suite.model_fields_set or margin == suite.margin:
        return suite
    values = {**dict(suite), "margin": margin}
    return SuiteConfig.model_construct(_fields_set=suite.model_fields_set, **values)
