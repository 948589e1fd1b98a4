"""Frozen models of a campaign file, with the documentation of every field below it.

A setting that a round leaves out comes from ``defaults``, and one that those leave out has the default
stated here. Messages of cross-field rules state the rule, the value and the remedy. `align.config.file`
reads the YAML. Nothing here imports torch, so a file is checked in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from align.algorithms import ALGORITHMS, GRPO, Algorithm, algorithm_from, spelt_out
from align.algorithms.importance import ImportanceConfig
from align.config.data import ExamplesConfig, Prompts, PromptsConfig, sourced
from align.config.episodes.rules import (
    check_acting,
    check_counts,
    check_episode,
    with_environment_reward,
)
from align.config.episodes.settings import ActingSettings, without_acting
from align.config.gate import AnswerSampling, GateConfig, RoundSuiteConfig, SuiteConfig
from align.config.learning import OptimizerConfig, SamplingConfig, listed
from align.config.mergers import merger_from
from align.config.mergers.rules import check_merge
from align.config.mergers.settings import MergeConfig
from align.config.policy import EngineConfig, LoraConfig, PolicyConfig, WaitsConfig
from align.config.repair import RepairConfig
from align.config.replay.replay import ReplayConfig
from align.config.retention.anchors import AnchorConfig, AnchorsConfig
from align.config.retention.methods import KLAnchorsConfig, RetentionConfig
from align.config.retention.registry import retention_from
from align.config.retention.rules import check_methods, check_retention
from align.config.retrieval.rules import check_index, index_alone
from align.config.retrieval.settings import Index
from align.config.rewards import Reward, RewardConfig, check_rewards
from align.config.rules import (
    check_anchors,
    check_bank,
    check_composed,
    check_draw,
    check_dropout,
    check_engines,
    check_following,
    check_heldout,
    check_overrides,
    check_rehearsal,
    check_replay,
    check_staleness,
    check_used,
)
from align.config.schedule import RememberConfig, ScheduleSettings, check_schedules
from align.config.store import ReferencesConfig, StoreSettings
from align.config.watch import HackingConfig, as_stored
from align.settings import Name, Places, without_unset
from rollouts.errors import closest

__all__ = [
    "AnchorConfig",
    "AnchorsConfig",
    "CampaignConfig",
    "EngineConfig",
    "GateConfig",
    "HackingConfig",
    "LoraConfig",
    "OptimizerConfig",
    "PolicyConfig",
    "PromptsConfig",
    "RepairConfig",
    "ReplayConfig",
    "RewardConfig",
    "RoundConfig",
    "RoundSettings",
    "RoundSuiteConfig",
    "SamplingConfig",
    "SuiteConfig",
    "filled",
    "overlay",
]

PLANNING = {"assumed_change", "underpowered"}
"""Settings of the gate that plan its power and do not change a verdict."""

NO_ANCHORS = (
    "retention lists no kl_anchors, and anchors is not set either: no KL holds the policy to earlier "
    "snapshots; add kl_anchors to the list to keep the default anchors. Without them replayed prompts "
    "have no loss unless replay.rewards is true; replay.past: 0 and replay.general: 0 spare their samples"
)
"""Remark on rounds that lose the default anchors because they list other methods."""

Examples = Annotated[ExamplesConfig, BeforeValidator(sourced)]


class RoundSettings(ActingSettings):
    """Settings that ``defaults`` may state for all rounds and each round for itself."""

    algorithm: Annotated[
        SerializeAsAny[Algorithm],
        BeforeValidator(lambda value, info: algorithm_from(value, info.context)),
    ] = GRPO()
    sampling: SamplingConfig = SamplingConfig()
    importance: ImportanceConfig = ImportanceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    replay: ReplayConfig = ReplayConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    """Short form of an entry ``kl_anchors`` in ``retention``."""
    retention: Annotated[
        tuple[Annotated[SerializeAsAny[RetentionConfig], BeforeValidator(retention_from)], ...],
        BeforeValidator(listed),
    ] = ()
    """All methods that hold the policy to earlier rounds. Without this list ``anchors`` are the only
    method. With a list that has no ``kl_anchors``, in a round that sets no ``anchors`` either, there are no
    KL anchors."""
    system: str | None = None
    """System message of the round's prompts; None: that of its prompts, or of the policy. Prompts with a
    system message of their own are refused."""
    suite: RoundSuiteConfig = RoundSuiteConfig()
    repair: RepairConfig = RepairConfig()
    merge: Annotated[SerializeAsAny[MergeConfig] | None, BeforeValidator(merger_from)] = None
    """Merger that makes the round's candidate of the trained weights and earlier ones; None: the candidate
    is what was trained."""
    gold: tuple[Reward, ...] = ()
    """Rewards that also score the rollouts but are not learned from. They show when the learned reward
    rises while the quality it stands for does not."""
    hacking: HackingConfig = HackingConfig()
    mode: Literal["add", "override"] = "add"
    """Treatment of earlier accepted rounds. ``add``: rewards of rounds with the same prompts stay in the
    rubric, and their suites must not be lost. ``override``: this round's rewards replace them; of other
    earlier rounds exactly the prompts, examples and suite items that this round contradicts are retired."""
    failed_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a round's samples whose reward may fail before the round stops."""
    meter_every: Annotated[int, Field(ge=1)] = 15
    """Learner steps between drift measurements."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 15
    """Learner steps between checkpoints; a round that was stopped resumes from its last checkpoint."""

    @property
    def methods(self) -> tuple[RetentionConfig, ...]:
        """Settings of all retention methods, KL anchors first."""
        anchors = {name: getattr(self.anchors, name) for name in AnchorsConfig.model_fields}
        return (KLAnchorsConfig(**anchors), *self.retention)

    @model_validator(mode="after")
    def _move_kl_anchors(self, info: ValidationInfo) -> Self:
        """Move an entry ``kl_anchors`` of `retention` into `anchors`, so that both spellings are equal."""
        if "retention" not in self.model_fields_set:
            return self
        names = [method.name for method in self.retention]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"retention lists {twice!r} twice; write one entry, with all its settings"
            )
        if "kl_anchors" in names and "anchors" in self.model_fields_set:
            raise ValueError(
                "anchors is short for the entry kl_anchors of retention, and both are set; move the "
                "settings of anchors into the entry, or remove the entry"
            )
        anchors = self.anchors
        if "anchors" not in self.model_fields_set:
            anchors = AnchorsConfig(new=(), past=(), general=())
            if "kl_anchors" not in names and isinstance(info.context, Places):
                info.context.remark(NO_ANCHORS)
        for method in self.retention:
            if isinstance(method, KLAnchorsConfig):
                values = {name: getattr(method, name) for name in AnchorsConfig.model_fields}
                anchors = AnchorsConfig(**values)
        rest = tuple(method for method in self.retention if method.name != "kl_anchors")
        # The model is frozen for its users; this is still its construction.
        self.__dict__.update(anchors=anchors, retention=rest)
        self.__pydantic_fields_set__.add("anchors")
        return self


class RoundConfig(RoundSettings, ScheduleSettings):
    """A round: the rewards or data to learn from, and all settings of its training."""

    name: Name
    """Name in the ledger and in commands, unique among rounds and suites."""
    prompts: Prompts | None = None
    """Prompts that completions are sampled for; None if the round learns from ``data``."""
    data: Examples | None = None
    """Pairs, ratings, demonstrations or texts, for algorithms that learn from a file."""
    rewards: tuple[Reward, ...] = ()
    """Rewards that the round learns from, summed by weight."""
    index: Index | None = None
    """Change of the index of documents that the policy reads, see ``policy.retrieval``; None: it stays."""
    steps: Annotated[int, Field(ge=1), WrapValidator(index_alone)]
    """Number of learner steps; a round of ``external`` takes none and leaves it out. With 0 a round changes
    its ``index`` alone."""
    overrides: Annotated[tuple[Name, ...], BeforeValidator(listed)] = ()
    """Earlier rounds that ``mode: override`` is limited to; sets that mode. Empty: all earlier rounds."""
    remember: RememberConfig | Literal["all"] | None = None
    """Accepted rounds of a template that later rounds replay and measure. None: the 7 newest and 3 older
    ones; ``all``: every one, so that a round costs more the more there were."""

    @model_validator(mode="before")
    @classmethod
    def _without_steps(cls, data: Any) -> Any:
        """Fill in ``steps`` for a round that takes no learner steps."""
        if not isinstance(data, dict) or "steps" in data:
            return data
        algorithm = spelt_out(data.get("algorithm"))
        name = algorithm.get("name") if isinstance(algorithm, dict) else None
        known = ALGORITHMS.get(name) if isinstance(name, str) else None
        return data if known is None or known.learns_here else {**data, "steps": 1}

    @model_serializer(mode="wrap")
    def _without_overrides(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that older stores do not have, unless they are set."""
        values = without_unset(dump(self), ("overrides", "system", "index"))
        return without_acting(self, values)

    def replaces(self, earlier: str) -> bool:
        """Tell if what this round contradicts of an earlier round is retired."""
        return self.mode == "override" and (not self.overrides or earlier in self.overrides)

    @property
    def asks(self) -> PromptsConfig | ExamplesConfig:
        """Source of the round's prompts, which two rounds may share.

        Rounds with ``use: once`` never share a stream of the inbox: each reads the rows since the last.
        """
        source = self.prompts or self.data
        assert source is not None, "_material checks it"
        if source is self.data and self.data.stream is not None and self.data.use == "once":
            return self.data.model_copy(update={"source": f"{self.data.source}#{self.name}"})
        if source is self.prompts:
            return self.prompts.model_copy(update={"heldout": None})
        return source

    def named_rounds(self) -> Iterator[tuple[str, Literal["policy", "reward_model"], str]]:
        """Yield each ``round:NAME`` in the settings, as its field, the kind of model meant, and the
        name."""
        anchors = (*self.anchors.new, *self.anchors.past, *self.anchors.general)
        policies = [("anchors", anchor.to) for anchor in anchors]
        policies.append(("algorithm.teacher", self.algorithm.teacher_snapshot or ""))
        for field, target in policies:
            if target.startswith("round:"):
                yield field, "policy", target.removeprefix("round:")
        for name in self.merge.named_rounds() if self.merge else ():
            yield "merge", "policy", name
        for reward in (*self.rewards, *self.gold):
            target = str(reward.options.get("model"))
            if target.startswith("round:"):
                yield "rewards", "reward_model", target.removeprefix("round:")

    @model_validator(mode="after")
    def _score_environment(self) -> Self:
        """Add the reward of the environment, as TRL does."""
        self.__dict__["rewards"] = with_environment_reward(self)
        return self

    @model_validator(mode="after")
    def _limit_override(self) -> Self:
        if self.overrides and self.mode == "add":
            if "mode" in self.model_fields_set:
                raise ValueError(
                    f"overrides names {', '.join(self.overrides)} and mode is add, which retires nothing; "
                    "set mode to override, or remove overrides"
                )
            self.__dict__["mode"] = "override"
        return self

    @model_validator(mode="after")
    def _chats(self) -> Self:
        """Write the round's chat settings into its sources of prompts, so that each source is complete."""
        kwargs, suite = self.sampling.chat_template_kwargs, self.suite
        name = suite.chat_setting
        if name is not None and suite.prompts is None:
            raise ValueError(
                f"suite.{name} is for suite.prompts, and the round is measured on its own prompts, which "
                f"are rendered as in training; remove it, or name suite.prompts"
            )
        if self.prompts is not None:
            self.__dict__["prompts"] = self.prompts.with_chat(self.system, kwargs)
        elif self.data is not None and (self.system is not None or kwargs):
            name = "system" if self.system is not None else "sampling.chat_template_kwargs"
            raise ValueError(
                f"{name} is for prompts that are sampled for, and {self.algorithm.name} learns from data; "
                f"set it to null, and write it into the rows or set policy.{name.rpartition('.')[2]}"
            )
        if suite.prompts is not None:
            source = suite.prompts.with_chat(
                suite.system if suite.system is not None else self.system,
                {**kwargs, **suite.chat_template_kwargs},
            )
            self.__dict__["suite"] = suite.model_copy(update={"prompts": source})
        return self

    @model_validator(mode="after")
    def _material(self) -> Self:
        algorithm, material = self.algorithm, self.algorithm.material
        if not algorithm.learns_here and self.steps > 1:
            raise ValueError(
                f"steps is {self.steps} and {algorithm.name} takes no learner steps; remove steps"
            )
        if material == "rollouts":
            if self.prompts is None:
                has_file = self.data is not None and "pairs" in type(algorithm).model_fields
                instead = (
                    f", or algorithm: {{name: {algorithm.name}, pairs: file}}" if has_file else ""
                )
                raise ValueError(
                    f"{algorithm.name} samples completions of prompts; set prompts{instead}"
                )
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
        elif self.data.stream is not None and material not in ("pairs", "ratings"):
            raise ValueError(
                f"the inbox holds pairs and ratings, and {algorithm.name} learns from {material}; set data "
                "to a file, or choose an algorithm that learns from pairs or ratings"
            )
        if algorithm.makes == "reward_model" and (self.rewards or self.suite.prompts):
            raise ValueError(
                "a reward model learns from pairs and is measured on held-out ones; remove rewards and "
                "suite.prompts"
            )
        if self.replay.rewards and not algorithm.needs_rewards:
            raise ValueError(
                f"replay.rewards learns from rewards and {algorithm.name} does not; set it to false"
            )
        check_acting(self)
        by_part = getattr(algorithm, "by_part", False)
        check_rewards(self.rewards, self.sampling.group_size, by_part=by_part)
        check_anchors(self)
        check_methods(self)
        check_heldout(self)
        check_staleness(self)
        check_index(self)
        if "gold_apart" in self.hacking.gate and not self.gold:
            raise ValueError(
                "hacking.gate names gold_apart, which compares with a gold reward, and there is none; set "
                "gold to a reward that is not learned from, or take gold_apart out"
            )
        return self


class CampaignConfig(StoreSettings):
    """A campaign: a policy, its rounds in order, and the suites that later rounds must not lose."""

    policy: PolicyConfig
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws of prompts, samples and suites."""
    rollouts: EngineConfig = EngineConfig()
    defaults: RoundSettings = RoundSettings()
    rounds: Annotated[tuple[RoundConfig, ...], Field(min_length=1)]
    gate: GateConfig = GateConfig()
    suites: tuple[SuiteConfig, ...] = ()
    serving: AnswerSampling | None = None
    """Sampling of ``keel serve`` for requests that state none, and the default of exported folders.
    None: the sampling of the suites if they all have the same."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Trackers that get the metrics besides ``metrics.jsonl``; each needs the extra of its name."""
    references: ReferencesConfig = ReferencesConfig()
    """Campaigns that the summary numbers are compared with; they decide nothing."""
    waits: WaitsConfig = WaitsConfig()
    """Deadlines of a run's waits on its own processes, and on the runner before it."""
    keep_rollouts: Annotated[int, Field(ge=1)] | Literal["all", "none"] = 50
    """Number of a round's last steps whose rollouts are kept as tables."""

    @model_validator(mode="before")
    @classmethod
    def _fill_rounds(cls, data: Any) -> Any:
        return filled(data)

    @field_validator("suites")
    @classmethod
    def _fit_margins(
        cls, suites: tuple[SuiteConfig, ...], info: ValidationInfo
    ) -> tuple[SuiteConfig, ...]:
        gate: GateConfig | None = info.data.get("gate")
        return suites if gate is None else gate.fitted(suites)

    _places: Places | None = PrivateAttr(default=None)

    @property
    def places(self) -> Places | None:
        """Folders that relative paths start from; None if the campaign comes from no file."""
        return self._places

    @property
    def home(self) -> Path:
        """Folder of the campaign file; the current folder if the campaign comes from no file."""
        return Path() if self._places is None else self._places.folder

    @model_validator(mode="after")
    def _keep_places(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, Places):
            self._places = info.context
        return self

    @model_validator(mode="after")
    def _cross_check(self) -> Self:
        keys = [f"rounds.{index}" for index in range(len(self.rounds))]
        keys += [f"suites.{index}" for index in range(len(self.suites))]
        names = [spec.name for spec in self.rounds] + [suite.name for suite in self.suites]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(
                    f"{keys[index]}.name: rounds and suites share one name space, and {name!r} is used "
                    f"twice; rename one, this or {keys[names.index(name)]}"
                )
        for index, spec in enumerate(self.rounds):
            spec.algorithm.check(spec.sampling.group_size, f"rounds.{index}")
            check_used(spec, self.defaults, f"rounds.{index}")
            check_episode(spec, self.defaults, f"rounds.{index}")
            check_replay(spec, self.defaults, f"rounds.{index}")
            check_draw(self.rounds, index, self.defaults)
            check_rehearsal(self.rounds, index, self.defaults)
            check_dropout(spec, index, self.policy)
            check_following(spec, index)
            check_retention(self.rounds, index, self.policy, self.defaults)
            check_merge(self.rounds, index, self.policy)
            check_overrides(self.rounds, index)
            if spec.repair.interpolate and self.policy.has_bare_dora:
                raise ValueError(
                    f"rounds.{index}.repair: interpolate is on and policy.lora.dora is true: there is no "
                    "straight line from the base to a DoRA adapter; set interpolate to false, or "
                    "policy.lora.merge to true"
                )
            if spec.sampling.in_flight and self.policy.lora and self.policy.lora.serve == "adapter":
                raise ValueError(
                    f"rounds.{index}.sampling: in_flight is on and engines serve adapters: a request that "
                    "runs keeps its adapter; set policy.lora.serve to merged, or in_flight to false"
                )
            earlier = [r.name for r in self.rounds[:index]]
            for field, makes, name in spec.named_rounds():
                known = [r.name for r in self.rounds[:index] if r.algorithm.makes == makes]
                if name not in known:
                    when = "comes later" if name in names else "does not exist"
                    when = "is this one itself" if name == spec.name else when
                    near = closest(name, known)
                    meant = f"did you mean {near!r}? Rounds" if near else "rounds"
                    wrong = f"makes no {makes.replace('_', ' ')}" if name in earlier else when
                    raise ValueError(
                        f"rounds.{index}.{field}: {'round:' + name!r} names a round that {wrong}; "
                        f"{meant} before {spec.name!r}: {', '.join(known) or 'none'}"
                    )
            if any(anchor.to == "owner" for anchor in (*spec.anchors.new, *spec.anchors.general)):
                raise ValueError(
                    f"rounds.{index}.anchors: only past prompts have an owner; "
                    "use parent or base for new and general prompts"
                )
        for check in (check_bank, check_engines, check_counts):
            check(self)
        if self.store and self.store in (*self.references.alone, self.references.joint):
            raise ValueError(
                f"references: {self.store} is this campaign's own store; name those of other campaigns"
            )
        check_composed(self.suites, [spec.name for spec in self.rounds])
        check_schedules(self.rounds, [s.name for s in self.suites])
        return self

    def content(self) -> dict[str, Any]:
        """Return all settings that decide the result.

        Left out are the places of the store, the resources of processes, and the schedule of rounds.
        ``remember`` is left out too, since the ledger states it with each round that fell due.
        """
        resources = {"max_restarts", "ranks", "ranks_per_node", "resources", "threads"}
        content = self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(set(StoreSettings.model_fields) - {"name"}, True),
                "rollouts": True,
                "serving": True,
                "trackers": True,
                "references": True,
                "waits": True,
                "keep_rollouts": True,
                "policy": resources | {"gradient_checkpointing"},
                "rounds": {"__all__": {*ScheduleSettings.model_fields, "remember"}},
                "gate": PLANNING | (set() if self.gate.spending else {"spending"}),
            },
        )
        for settings in (content["defaults"], *content["rounds"], *content["suites"]):
            for placing in ("resources", "files"):
                settings.get("episode", {}).pop(placing, None)
        # Stores that are older than the setting have no such key, and their hash must stay the same.
        for settings in (content["defaults"], *content["rounds"]):
            if not settings["retention"]:
                del settings["retention"]
            settings["hacking"] = as_stored(settings["hacking"])
            if not settings["replay"]["examples"]:
                del settings["replay"]["examples"]
            if settings["merge"] is None:
                del settings["merge"]
            if settings.get("system") is None:
                settings.pop("system", None)
            if settings["algorithm"].get("sft") == 0.0:
                del settings["algorithm"]["sft"]
        if content["policy"]["bank"] is None:
            del content["policy"]["bank"]
        # So it is with settings of suites that are younger than they are.
        for suite in content["suites"]:
            for young in ("calibration", "composes"):
                if suite[young] is None:
                    del suite[young]
        return content

    def training_hash(self, name: str) -> str:
        """Return the sha256 of all that decides a round's training; suites and the gate do not."""
        content = self.content()
        names = [spec["name"] for spec in content["rounds"]]
        trained = content["rounds"][: names.index(name) + 1]
        judged = {"suite", "repair", "merge"}
        values = {
            "policy": content["policy"],
            "seed": content["seed"],
            "rounds": [{k: v for k, v in spec.items() if k not in judged} for spec in trained],
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def hash(self, num_rounds: int | None = None) -> str:
        """Return the sha256 of `content`, with only the first ``num_rounds`` rounds if that is given."""
        content = self.content()
        content["rounds"] = content["rounds"][:num_rounds]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def filled(data: Any) -> Any:
    """Return a raw campaign in which each round is ``defaults`` overlaid with the round's settings."""
    if not isinstance(data, dict) or not isinstance(data.get("rounds"), list | tuple):
        return data
    defaults = data.get("defaults") or {}
    if not isinstance(defaults, dict):
        return data
    rounds = [overlay(defaults, r) if isinstance(r, dict) else r for r in data["rounds"]]
    return {**data, "rounds": rounds}


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay ``above`` over ``below``: mappings are merged key by key, everything else is replaced.

    A mapping with another ``name`` is replaced too. ``algorithm: grpo`` counts as ``{name: grpo}``.
    """
    if "name" in above and above["name"] != below.get("name", above["name"]):
        return above  # Another algorithm or reward has other options.
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if key == "algorithm":
            old, value = spelt_out(old), spelt_out(value)
        merged[key] = (
            overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return _overlaid_retention(above, merged)


def _overlaid_retention(above: dict[str, Any], merged: dict[str, Any]) -> dict[str, Any]:
    """Return merged settings without the conflict of a round's ``anchors`` and the defaults' ``retention``.

    A list ``retention`` states all methods, so a list of the round replaces whatever the defaults state.
    Anchors of the round change the entry ``kl_anchors`` of the defaults' list key by key.

    Args:
        above: raw settings of the round.
        merged: the round laid over the defaults, key by key.
    """
    if "retention" in above:
        if "anchors" not in above:
            merged.pop("anchors", None)
        return merged
    entries, anchors = merged.get("retention"), above.get("anchors")
    if not isinstance(entries, list | tuple) or not isinstance(anchors, dict):
        return merged
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    if "kl_anchors" not in names:
        return merged
    index = names.index("kl_anchors")
    entry = entries[index] if isinstance(entries[index], dict) else {"name": "kl_anchors"}
    rest = {key: value for key, value in merged.items() if key != "anchors"}
    return {**rest, "retention": [*entries[:index], overlay(entry, anchors), *entries[index + 1 :]]}
