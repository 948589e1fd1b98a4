"""Registry of rewards: every shipped reward with its facts, and the way from a name to a function.

A name is one of `REWARDS`, the name of an entry point of another distribution (`rewards.plugins`),
``pkg.mod:name``, or ``file.py:name`` relative to the current folder. It leads to a function for batches,
to a one-sample function or to a class with set-up (`rewards.signatures.adapters`); an entry point may also
lead to a `RewardSpec`. Everything that can be known without data is checked here, before anything starts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from importlib.metadata import EntryPoint
from typing import Any

from rewards.base import RewardFunction, RewardPart
from rewards.environments.reward import calls, environment, failed_calls, success, turns
from rewards.imports import import_reward
from rewards.isolation.facts import ask_facts
from rewards.isolation.levels import LEVELS, Level
from rewards.library import (
    agreement,
    language,
    layout,
    maths,
    naive_bayes,
    preference_model,
    refusal,
    reward_model,
    similarity,
    text,
    verifiable,
)
from rewards.library.code.reward import code_tests
from rewards.library.corpus.edits import EditSuccess
from rewards.library.corpus.metric import CorpusMetric
from rewards.library.corpus.names import CORPUS_METRICS
from rewards.library.corpus.spans import SpanF1
from rewards.library.corpus.translation import Bleu, Chrf
from rewards.library.corpus.triples import TripleF1
from rewards.library.ifeval.reward import ifeval
from rewards.library.judge.pairwise import PairwiseJudge
from rewards.library.judge.score import LLMJudge
from rewards.plugins import load_plugin, origin, plugins
from rewards.signatures.adapters import check_options, per_sample, takes_one_sample, with_set_up
from rewards.signatures.info import SHIPPED, RewardInfo, packed, read_info, unpacked
from rewards.signatures.signature import arguments, check_signature, required_columns
from rollouts.errors import KeelError, UserError, nearest

Member = tuple[str, Mapping[str, Any]]
"""Name and options of a reward that another one is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardFacts:
    """Facts about a reward that are known before it is called.

    Raises:
        ValueError: a fact cannot be.
    """

    range: tuple[float, float] | None = None
    """Smallest and largest value; None: unbounded, or dependent on options."""
    graded: bool = False
    """True if values between the ends of ``range`` are usual; False: the reward passes or fails."""
    isolation: Level = "inline"
    """Level under ``isolation: auto``: ``process`` where an answer or a pattern may take for ever,
    ``sandbox`` where the model's code runs. A reward that does not ship with Keel gets at least
    ``process``."""
    asks_a_model: bool = False
    """True if the value is a model's opinion, which can be talked round and costs a call."""

    def __post_init__(self) -> None:
        if self.isolation not in LEVELS:
            raise ValueError(f"isolation {self.isolation!r} is not one of {', '.join(LEVELS)}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range goes from the smallest to the largest value, got {self.range}")


@dataclass(frozen=True, slots=True)
class RewardSpec(RewardFacts):
    """A reward with every fact about it."""

    function: RewardFunction
    """Function for batches or for one sample, or class with set-up."""
    _: KW_ONLY
    members: Callable[[Mapping[str, Any]], Sequence[Member]] | None = None
    """Reader of the rewards that this one is made of, from its options. Their parts are then the first
    argument of its class, by position. None: it is made of no others."""


UNIT = (0.0, 1.0)
REWARDS: dict[str, RewardSpec] = {
    "exact_match": RewardSpec(verifiable.exact_match, range=UNIT),
    "normalised_match": RewardSpec(verifiable.normalised_match, range=UNIT),
    "contains": RewardSpec(verifiable.contains, range=UNIT),
    "regex_match": RewardSpec(verifiable.regex_match, range=UNIT, isolation="process"),
    "multiple_choice": RewardSpec(verifiable.multiple_choice, range=UNIT),
    "math_answer": RewardSpec(maths.math_answer, range=UNIT, isolation="process"),
    "code_tests": RewardSpec(code_tests, range=UNIT, isolation="sandbox"),
    "tag_format": RewardSpec(layout.tag_format, range=UNIT),
    "json_schema": RewardSpec(layout.json_schema, range=UNIT),
    "ifeval": RewardSpec(ifeval, range=UNIT),
    "language": RewardSpec(language.language, range=UNIT),
    "sentiment": RewardSpec(text.sentiment),
    "dialogue": RewardSpec(text.dialogue),
    "ends_within": RewardSpec(text.ends_within, range=UNIT),
    "short_sentences": RewardSpec(text.short_sentences, range=UNIT, graded=True),
    "distinct_ngrams": RewardSpec(text.distinct_ngrams, range=UNIT, graded=True),
    "length": RewardSpec(text.length),
    "soft_overlong": RewardSpec(text.soft_overlong),
    "refusal": RewardSpec(refusal.refusal, range=UNIT),
    "naive_bayes": RewardSpec(naive_bayes.NaiveBayes),
    "span_f1": RewardSpec(SpanF1, range=UNIT, graded=True),
    "triple_f1": RewardSpec(TripleF1, range=UNIT, graded=True),
    "bleu": RewardSpec(Bleu, range=UNIT, graded=True),
    "chrf": RewardSpec(Chrf, range=UNIT, graded=True),
    "edit_success": RewardSpec(EditSuccess, range=UNIT),
    "similarity": RewardSpec(similarity.similarity, range=UNIT, graded=True),
    "reward_model": RewardSpec(reward_model.reward_model, asks_a_model=True),
    "preference_model": RewardSpec(preference_model.preference_model, asks_a_model=True),
    "llm_judge": RewardSpec(LLMJudge, asks_a_model=True),
    "pairwise_judge": RewardSpec(PairwiseJudge, asks_a_model=True),
    "environment": RewardSpec(environment),
    "success": RewardSpec(success, range=UNIT),
    "turns": RewardSpec(turns),
    "calls": RewardSpec(calls),
    "failed_calls": RewardSpec(failed_calls),
    "agreement": RewardSpec(agreement.Agreement, members=agreement.members_of),
}


_ANSWERS: dict[tuple[EntryPoint, str], Mapping[str, Any]] = {}
"""Answers of `facts_here` about rewards of other distributions, by entry point and options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedReward:
    """Reward that a name leads to; only code that ships with Keel is imported yet."""

    name: str
    origin: str
    """``keel``, a distribution with its version, or a module or file."""
    spec: RewardSpec | None = None
    """Reward that ships with Keel; None for every other."""
    point: EntryPoint | None = None
    """Entry point of another distribution; None for a shipped reward and for a module or file."""

    @property
    def shipped(self) -> bool:
        """True for Keel's own code, which is trusted."""
        return self.origin == SHIPPED

    def facts(self, where: str | None = None) -> RewardFacts | None:
        """Return what is known of it; a distribution is asked in a process of its own.

        None for ``pkg.mod:name`` and ``file.py:name``, whose code states no facts.

        Raises:
            UserError: the distribution cannot be imported, or does not answer in time.
        """
        if self.point is None:
            return self.spec
        facts = _asked(self, {}, where)["facts"]
        limits = facts["range"]
        return RewardFacts(**{**facts, "range": None if limits is None else tuple(limits)})

    def members(self, options: Mapping[str, Any], where: str | None = None) -> list[Member]:
        """Return the rewards that this one is made of with these options; none for most.

        Raises:
            UserError: the options name none, or as `facts`.
        """
        if self.point is not None:
            return [(name, settings) for name, settings in _asked(self, options, where)["members"]]
        reader = None if self.spec is None else self.spec.members
        return [] if reader is None else list(reader(options))

    @property
    def level(self) -> Level:
        """Level of isolation under ``auto``, without members."""
        return self.level_with({})

    def level_with(self, options: Mapping[str, Any], where: str | None = None) -> Level:
        """Return the level of isolation under ``auto``: the strictest that it or one of its members needs.

        Raises:
            UserError: one member needs a sandbox, and another the network; or as `facts`.
        """
        facts = self.facts(where)
        stated: Level = "inline" if facts is None else facts.isolation
        alone = stated if self.shipped else max("process", stated, key=LEVELS.index)
        try:
            members = self.members(options, where) if options else []
        except UserError:  # Whoever loads the reward says what is wrong.
            return alone
        joined = [(find_reward(name, where), settings) for name, settings in members]
        levels = [member.level_with(settings, where) for member, settings in joined]
        strictest = max((alone, *levels), key=LEVELS.index)
        asking = [member.name for member, settings in joined if member.asks_a_model(settings)]
        if strictest == "sandbox" and asking:
            raise UserError(
                f"reward {self.name!r} needs a sandbox, and {asking[0]!r} in it asks a model, which has no "
                "network there",
                where=where,
                remedy="make them two parts of the rubric, or state isolation: process",
            )
        return strictest

    def asks_a_model(self, options: Mapping[str, Any]) -> bool:
        """Tell if it, or one of those that it is made of, is known to be a model's opinion.

        Raises:
            UserError: as `members`.
        """
        facts = self.facts()
        if facts is not None and facts.asks_a_model:
            return True
        members = self.members(options) if options else []
        return any(find_reward(name).asks_a_model(settings) for name, settings in members)

    def imported(self, where: str | None) -> RewardSpec:
        """Return the reward with its facts; import its code into this process if need be."""
        if self.spec is not None:
            return self.spec
        target = (
            import_reward(self.name, where)
            if self.point is None
            else load_plugin(self.point, where)
        )
        return target if isinstance(target, RewardSpec) else RewardSpec(target)

    def load(self, options: Mapping[str, Any], where: str | None = None) -> RewardFunction:
        """Return the function that a rubric calls, adapted and checked; see `load_reward`."""
        spec = self.imported(where)
        target = spec.function
        if isinstance(target, type):
            check_options(self.name, target, options, where)
            if not self.shipped:
                function = with_set_up(target, lambda: _construct(spec, options))
            else:  # Its set-up is cheap, and the values of its options are checked there.
                function = _try(self.name, options, where, lambda: _construct(spec, options))
            check_signature(self.name, function, {}, where)
            return function
        function = per_sample(target, options) if takes_one_sample(target) else target
        check_signature(self.name, function, options, where)
        if self.shipped:  # Called without samples, it checks the values of its options.
            part = RewardPart(name=self.name, weight=1.0, function=function, options=options)
            columns: dict[str, Any] = {column: [] for column in required_columns(part)}
            call = {**arguments(part, [], {}), **columns}
            _try(self.name, options, where, lambda: function(**call))
        return function


def find_reward(name: str, where: str | None = None) -> NamedReward:
    """Find what a name leads to.

    Args:
        where: place in the campaign file, for errors.

    Raises:
        UserError: there is no such reward, or there are several.
    """
    source, colon, _ = name.rpartition(":")
    if colon:
        return NamedReward(name=name, origin=source)
    points = plugins()
    origins = [SHIPPED] if name in REWARDS else []
    origins += [origin(point) for point in points.get(name, ())]
    if not origins:
        raise UserError(
            f"unknown reward {name!r}",
            where=where,
            remedy=f"{nearest(name, [*REWARDS, *points])}; or write pkg.mod:function, or file.py:function",
        )
    if len(origins) > 1:
        raise UserError(
            f"{len(origins)} rewards are named {name!r}",
            where=where,
            cause="; ".join(origins),
            remedy="uninstall one of them, or write pkg.mod:name",
        )
    spec = REWARDS.get(name)
    point = points[name][0] if spec is None else None
    return NamedReward(name=name, origin=origins[0], spec=spec, point=point)


def load_reward(
    name: str, options: Mapping[str, Any] | None = None, where: str | None = None
) -> RewardFunction:
    """Load the function behind a name, checked against its options.

    Raises a `UserError` when it cannot be imported, does not exist, cannot be called by a rubric,
    or does not take an option. ``where`` names the place in the campaign file.
    """
    return find_reward(name, where).load(options or {}, where)


def corpus_metric(
    name: str, options: Mapping[str, Any], where: str | None = None
) -> CorpusMetric | None:
    """Return the metric that counts answers, if the reward of this name is one.

    Raises:
        UserError: an option is wrong, or a package is missing.
    """
    if name not in CORPUS_METRICS:
        return None
    metric: Any = load_reward(name, options, where)
    assert isinstance(metric, CorpusMetric)
    return metric


def facts_of(name: str) -> RewardFacts | None:
    """Return what is known about a reward without importing its code; None: nothing is.

    A name that leads nowhere has no facts either: `load_reward` says what is wrong with it.
    """
    try:
        return find_reward(name).facts()
    except UserError:
        return None


def describe(name: str) -> RewardInfo:
    """Describe a reward without calling it.

    Raises:
        UserError: there is no such reward, or it cannot be imported.
    """
    reward = find_reward(name)
    if reward.spec is None:
        return unpacked(_asked(reward, {}, None)["info"])
    return _info(reward, reward.spec)


def facts_here(name: str, options: Mapping[str, Any], where: str | None) -> dict[str, Any]:
    """Describe a reward as JSON values; its code is imported into this process, so call it in a worker.

    Raises:
        UserError: it cannot be imported, or has no readable signature.
    """
    reward = find_reward(name, where)
    spec = reward.imported(where)
    return {
        "facts": {field.name: getattr(spec, field.name) for field in fields(RewardFacts)},
        "members": _members_of(name, spec, options, where),
        "info": packed(_info(reward, spec)),
    }


def _members_of(
    name: str, spec: RewardSpec, options: Mapping[str, Any], where: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the rewards that another one says it is made of.

    Raises:
        UserError: its reader fails on the options, or returns something else than names with options.
    """
    reader = spec.members
    if reader is None or not options:
        return []
    members = _try(
        name,
        options,
        where,
        lambda: [(member, dict(settings)) for member, settings in reader(options)],
    )
    for member, _ in members:
        if not isinstance(member, str):
            raise UserError(
                f"reward {name!r} is made of {member!r}, which is no name of a reward",
                where=where,
                remedy="let members of its RewardSpec return pairs of a name and options",
            )
    return list(members)


def _asked(reward: NamedReward, options: Mapping[str, Any], where: str | None) -> Mapping[str, Any]:
    """Return what `facts_here` says in a process of its own; a distribution is asked once."""
    if reward.point is None:
        return ask_facts(reward.name, options, where)
    key = (reward.point, json.dumps(options, sort_keys=True, default=repr))
    if key not in _ANSWERS:
        _ANSWERS[key] = ask_facts(reward.name, options, where)
    return _ANSWERS[key]


def _info(reward: NamedReward, spec: RewardSpec) -> RewardInfo:
    """Describe a reward whose code is imported."""
    try:
        info = read_info(reward.name, reward.origin, spec.function)
    except (TypeError, ValueError) as error:
        what = f"reward {reward.name!r} has no readable signature"
        raise UserError(what, cause=str(error)) from error
    return replace(info, range=spec.range, asks_a_model=spec.asks_a_model)


def known_rewards() -> list[RewardInfo]:
    """List every reward that has a name, ours first. One that cannot be used says so in ``problem``."""
    points, rewards = plugins(), []
    for name in dict.fromkeys((*REWARDS, *points)):
        try:
            rewards.append(describe(name))
        except UserError as error:
            origins = [SHIPPED] if name in REWARDS else []
            origins += [origin(point) for point in points.get(name, ())]
            rewards.append(RewardInfo(name=name, origin=", ".join(origins), problem=str(error)))
    return rewards


def _construct(spec: RewardSpec, options: Mapping[str, Any]) -> Any:
    """Make the instance of a reward class, with the parts of its members where it has some."""
    if spec.members is None:
        return spec.function(**options)
    parts = []
    for index, (name, settings) in enumerate(spec.members(options)):
        function = load_reward(name, settings, f"of.{index}")
        parts.append(RewardPart(name=name, weight=1.0, function=function, options=settings))
    return spec.function(parts, **options)


def _try(
    name: str, options: Mapping[str, Any], where: str | None, attempt: Callable[[], Any]
) -> Any:
    """Try to make a reward; turn wrong option values and missing packages into one message."""
    try:
        return attempt()
    except KeelError as error:
        raise UserError(
            f"reward {name!r}: {error.what}", where=where, cause=error.cause, remedy=error.remedy
        ) from error
    except Exception as error:  # whatever a wrong value of an option makes the function raise
        raise UserError(
            f"reward {name!r} cannot use the options {dict(options)}",
            where=where,
            cause=f"{type(error).__name__}: {error}",
        ) from error
