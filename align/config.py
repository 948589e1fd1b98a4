"""A campaign file as frozen models: every field documented where it lives.

Whatever a round leaves out comes from ``defaults``, and what those leave out from here. Cross-field
rules say rule, value and remedy. `align.campaign_file` reads the YAML. Imports no torch: a file is
checked in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from align.examples.config import ExamplesConfig
from align.learner.importance import ImportanceConfig
from align.learner.losses import GRPO, Algorithm, algorithm_from
from align.learning_config import (
    AnchorConfig,
    AnchorsConfig,
    OptimizerConfig,
    SamplingConfig,
)
from align.policy_config import EngineConfig, LoraConfig, PolicyConfig
from align.settings import Settings

__all__ = [
    "AnchorConfig",
    "AnchorsConfig",
    "CampaignConfig",
    "EngineConfig",
    "GateConfig",
    "LoraConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "PromptsConfig",
    "ReplayConfig",
    "RewardConfig",
    "RoundConfig",
    "RoundSettings",
    "RoundSuiteConfig",
    "SamplingConfig",
    "SuiteConfig",
    "overlay",
]

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Lower-case letters, digits, dot, dash, underscore: names become folders."""


def _named(value: Any) -> Any:
    """``exact_match`` is short for ``{name: exact_match}``."""
    return {"name": value} if isinstance(value, str) else value


def _sourced(value: Any) -> Any:
    """``demo://rev`` is short for ``{source: demo://rev}``."""
    return {"source": value} if isinstance(value, str) else value


class PromptsConfig(Settings):
    """Where prompts come from."""

    source: str
    """``demo://NAME``, a .jsonl/.parquet/.csv file, or a ``datasets`` id."""
    column: str = "prompt"
    """Column with the text, or with chat messages."""
    split: str = "train"
    """Split of a ``datasets`` id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only the first so many rows."""


Prompts = Annotated[PromptsConfig, BeforeValidator(_sourced)]
Examples = Annotated[ExamplesConfig, BeforeValidator(_sourced)]


class RewardConfig(Settings):
    """One named part of a rubric."""

    name: str
    """Registry name, ``pkg.mod:function`` or ``file.py:function``."""
    weight: float = 1.0
    """Factor in the sum."""
    part: Name | None = None
    """Name in the metrics; None takes the function's own name."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments passed to the function at every call."""
    isolation: Literal["auto", "inline", "process", "sandbox"] = "auto"
    """``inline``: in this process, trusted, without deadlines. ``process``: in worker processes without
    tokens. ``sandbox``: those without network and files, for a reward that runs the model's code.
    ``auto``: inline for Keel's own rewards, sandbox for ``code_tests``, process for all others."""
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For one batch, repeats included; about twice what a batch takes. None: 120."""
    sample_deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For one sample: the function is then called with one at a time. None: only the batch has one."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that share a batch, cut between groups. None: 1."""
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    """Address space of one process; ``.inf`` where a GPU is used. None: 4."""
    environment: tuple[str, ...] = ()
    """Names of environment variables its processes may see, such as the key of a judge."""

    @model_validator(mode="after")
    def _deadlines(self) -> Self:
        most, one = self.deadline_s, self.sample_deadline_s
        if most is not None and one is not None and one > most:
            raise ValueError(
                f"sample_deadline_s {one:g} is longer than deadline_s {most:g}; "
                "raise deadline_s, which is for the whole batch"
            )
        return self


Reward = Annotated[RewardConfig, BeforeValidator(_named)]


class ReplayConfig(Settings):
    """What of a step's budget goes to prompts that are not the round's own."""

    past: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share for prompts of earlier accepted rounds, balanced over the rounds."""
    general: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share for the general pool."""
    general_prompts: Prompts | None = None
    """The general pool; None turns its share off."""
    general_answers: Literal["sampled", "stored"] = "sampled"
    """``sampled``: the policy answers, held by the reverse KL. ``stored``: the campaign's start answered
    once, and the policy is held to those answers; they cost no sampling and no share of the budget."""
    general_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest stored answer, in tokens; None: as in training."""
    buffer: Annotated[int, Field(ge=1)] = 256
    """Prompts kept of each accepted round. No answers, no labels."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """KL needs no group: one sample each spends the budget on distinct prompts."""
    rewards: bool = False
    """Also learn from the rewards of the rounds that past prompts belong to. Needs groups."""

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if self.past + self.general >= 1:
            raise ValueError(
                f"past + general must leave room for new prompts, got {self.past + self.general}; "
                "lower one of the shares"
            )
        if self.rewards and self.samples_per_prompt < 2:
            raise ValueError(
                "replay.rewards compares completions of one prompt, got samples_per_prompt 1; "
                "set samples_per_prompt to the group size, or rewards to false"
            )
        return self


class RoundSuiteConfig(Settings):
    """The suite an accepted round leaves behind: its own reward on held-out prompts."""

    prompts: Prompts | None = None
    """None: the ``eval`` split of a demo source. Files need their own held-out prompts."""
    items: Annotated[int, Field(ge=1)] = 1500
    margin: Annotated[float, Field(gt=0)] = 0.05
    """Largest loss a later round may cause against its parent or the best so far."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss over the whole campaign against this round's own snapshot; None: twice the margin."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """None: as in training."""


class RoundSettings(Settings):
    """What ``defaults`` may set for all rounds and each round for itself."""

    algorithm: Annotated[SerializeAsAny[Algorithm], BeforeValidator(algorithm_from)] = GRPO()
    sampling: SamplingConfig = SamplingConfig()
    importance: ImportanceConfig = ImportanceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    replay: ReplayConfig = ReplayConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    suite: RoundSuiteConfig = RoundSuiteConfig()
    mode: Literal["add", "override"] = "add"
    """Toward accepted rounds with the same prompts. ``add``: their rewards stay in the rubric;
    ``override``: this round's preference replaces theirs."""
    failed_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a round's samples whose reward may fail before the round stops."""
    meter_every: Annotated[int, Field(ge=1)] = 15
    """Learner steps between drift measurements."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 15
    """Learner steps between checkpoints: a round that was stopped goes on from the last one."""


class RoundConfig(RoundSettings):
    """One preference round."""

    name: Name
    prompts: Prompts | None = None
    """What completions are sampled for; None where the round learns from ``data``."""
    data: Examples | None = None
    """Pairs, ratings, demonstrations or texts, for algorithms that learn from a file."""
    rewards: tuple[Reward, ...] = ()
    """The preference of this round; parts are summed by weight."""
    steps: Annotated[int, Field(ge=1)]
    """Learner steps."""

    @property
    def asks(self) -> PromptsConfig | ExamplesConfig:
        """Where the round's prompts come from: what two rounds may share."""
        found = self.prompts or self.data
        assert found is not None, "the check of the material"
        return found

    @model_validator(mode="after")
    def _material(self) -> Self:
        algorithm, material = self.algorithm, self.algorithm.material
        if material == "rollouts":
            if self.prompts is None:
                raise ValueError(f"{algorithm.name} samples completions of prompts; set prompts")
            if self.data is not None:
                raise ValueError(
                    f"{algorithm.name} learns from its own samples and would not read data; "
                    "remove it, or choose an algorithm that learns from a file"
                )
            if not self.rewards:
                use = "learns from" if algorithm.needs_rewards else "is measured by"
                raise ValueError(f"{algorithm.name} {use} rewards; set rewards")
        elif self.data is None:
            raise ValueError(f"{algorithm.name} learns from {material} of a file; set data")
        if algorithm.makes == "reward_model" and (self.rewards or self.suite.prompts):
            raise ValueError(
                "a reward model learns from pairs and is measured on held-out ones; remove rewards and "
                "suite.prompts"
            )
        if self.replay.rewards and not algorithm.needs_rewards:
            raise ValueError(
                f"replay.rewards learns from rewards and {algorithm.name} does not; set it to false"
            )
        terms = self.anchors.new
        if algorithm.anchors_are_reference and terms and not sum(term.beta for term in terms):
            raise ValueError(
                f"{algorithm.name} takes the weighted mean of anchors.new as its reference and their total "
                "weight is 0; give one of them a beta above 0, or leave anchors.new out for the parent"
            )
        if self.sampling.max_staleness and self.importance.level == "none":
            raise ValueError(
                f"max_staleness is {self.sampling.max_staleness} and importance.level is none: samples "
                "of older weights would count as the learner's own; set importance.level to token or "
                "sequence, or max_staleness to 0"
            )
        return self


class SuiteConfig(Settings):
    """A capability every candidate is measured on: items with a metric, or held-out text."""

    name: Name
    prompts: Prompts | None = None
    metric: Reward | None = None
    """Scores each completion; any reward can be one."""
    text: str | None = None
    """A text file: the score is the mean logprob per token of its windows, in nats."""
    window: Annotated[int, Field(ge=8)] = 256
    """Tokens per item of a text suite."""
    items: Annotated[int, Field(ge=1)] = 1500
    """Items used; a source with fewer is an error."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Largest loss against the parent or the best so far, in units of the metric."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Largest loss against the campaign's start; None takes ``gate.total_budget``."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """None takes ``defaults.sampling.max_tokens``."""
    role: Literal["gate", "watch"] = "gate"
    """``watch``: measured and shown, never decides."""

    @model_validator(mode="after")
    def _kind(self) -> Self:
        if (self.text is None) == (self.prompts is None):
            raise ValueError("a suite has either prompts (with a metric) or text; set exactly one")
        if (self.prompts is None) != (self.metric is None):
            raise ValueError("a suite over prompts needs a metric, and a text suite takes none")
        return self


class GateConfig(Settings):
    """When a candidate becomes production."""

    mode: Literal["enforce", "observe"] = "enforce"
    """``observe`` records the verdict and accepts all the same."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over the whole campaign, of accepting a loss as large as a margin."""
    campaign_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds that alpha is spread over. Declared, because looking more often costs certainty."""
    total_budget: Annotated[float, Field(gt=0)] = 0.03
    """Largest loss of a suite against the campaign's start, whatever the number of rounds."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """The target must be better than the parent by more than this."""


class CampaignConfig(Settings):
    """One campaign: a policy, its rounds in order, and what must not be lost."""

    name: Name
    policy: PolicyConfig
    store: str = ""
    """Folder of snapshots, ledger, metrics and evaluations; empty: ``runs/<name>``."""
    seed: Annotated[int, Field(ge=0)] = 0
    rollouts: EngineConfig = EngineConfig()
    defaults: RoundSettings = RoundSettings()
    rounds: Annotated[tuple[RoundConfig, ...], Field(min_length=1)]
    suites: tuple[SuiteConfig, ...] = ()
    gate: GateConfig = GateConfig()
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics also go, besides ``metrics.jsonl``; each is an extra of its name."""

    @model_validator(mode="before")
    @classmethod
    def _fill_rounds(cls, data: Any) -> Any:
        """A round is ``defaults`` overlaid with what the round itself says."""
        if not isinstance(data, dict) or not isinstance(data.get("rounds"), list | tuple):
            return data
        defaults = data.get("defaults") or {}
        if not isinstance(defaults, dict):
            return data
        rounds = [overlay(defaults, r) if isinstance(r, dict) else r for r in data["rounds"]]
        return {**data, "rounds": rounds}

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        names = [r.name for r in self.rounds] + [s.name for s in self.suites]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(
                f"rounds and suites share one name space, {twice[0]!r} stands twice; rename one"
            )
        for index, spec in enumerate(self.rounds):
            spec.algorithm.check(spec.sampling.group_size, f"rounds.{index}")
            earlier = [r.name for r in self.rounds[:index]]
            anchors = (*spec.anchors.new, *spec.anchors.past, *spec.anchors.general)
            policies = [("anchors", anchor.to) for anchor in anchors]
            policies.append(("algorithm.teacher", spec.algorithm.teacher_snapshot or ""))
            models = [("rewards", str(reward.options.get("model"))) for reward in spec.rewards]
            for place, to in (*policies, *models):
                kind, _, name = to.partition(":")
                if kind != "round":
                    continue
                makes = "reward_model" if (place, to) in models else "policy"
                known = [r.name for r in self.rounds[:index] if r.algorithm.makes == makes]
                if name not in known:
                    when = "comes later" if name in names else "does not exist"
                    wrong = f"makes no {makes.replace('_', ' ')}" if name in earlier else when
                    raise ValueError(
                        f"rounds.{index}.{place}: {to!r} names a round that {wrong}; "
                        f"rounds before {spec.name!r}: {', '.join(known) or 'none'}"
                    )
            for anchor in anchors:
                if anchor.to == "owner" and anchor in (*spec.anchors.new, *spec.anchors.general):
                    raise ValueError(
                        f"rounds.{index}.anchors: only past prompts have an owner; "
                        "use parent or base for new and general prompts"
                    )
        return self

    @property
    def folder(self) -> Path:
        """Where the store lies."""
        return Path(self.store or f"runs/{self.name}")

    def content(self) -> dict[str, Any]:
        """Everything that decides the result: not where the store lies, not what it is run on."""
        resources = {"threads", "ranks", "gradient_checkpointing"}
        return self.model_dump(
            mode="json",
            exclude={"store": True, "rollouts": True, "trackers": True, "policy": resources},
        )

    def hash(self) -> str:
        """sha256 of `content`."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``; mappings are merged key by key, everything else is replaced, and so is a
    mapping that names something else."""
    if "name" in above and above["name"] != below.get("name", above["name"]):
        return above  # Another algorithm or reward: it has other options.
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged
