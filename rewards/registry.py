"""Registry of rewards: every shipped reward with its facts, and the way from a name to a function.

A name is one of `REWARDS`, the name of an entry point of another distribution (`rewards.plugins`),
``pkg.mod:name``, or ``file.py:name`` relative to the current folder. It leads to a function for batches,
to a one-sample function or to a class with set-up (`rewards.signatures.adapters`); an entry point may also
lead to a `RewardSpec`. Everything that can be known without data is checked here, before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from rewards.base import RewardFunction, RewardPart
from rewards.imports import import_reward
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
from rewards.library.ifeval.reward import ifeval
from rewards.library.judge.pairwise import PairwiseJudge
from rewards.library.judge.score import LLMJudge
from rewards.plugins import load_plugin, origin, plugins
from rewards.signatures.adapters import check_options, per_sample, takes_one_sample, with_set_up
from rewards.signatures.info import SHIPPED, RewardInfo, read_info
from rewards.signatures.signature import arguments, check_signature, required_columns
from rollouts.errors import KeelError, UserError, nearest

Member = tuple[str, Mapping[str, Any]]
"""Name and options of a reward that another one is made of."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A reward with every fact about it that is known before it is called.

    Raises:
        ValueError: a fact cannot be.
    """

    function: RewardFunction
    """Function for batches or for one sample, or class with set-up."""
    _: KW_ONLY
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
    members: Callable[[Mapping[str, Any]], Sequence[Member]] | None = None
    """Reader of the rewards that this one is made of, from its options. Their parts are then the first
    argument of its class, by position. None: it is made of no others."""

    def __post_init__(self) -> None:
        if self.isolation not in LEVELS:
            raise ValueError(f"isolation {self.isolation!r} is not one of {', '.join(LEVELS)}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range goes from the smallest to the largest value, got {self.range}")


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
    "similarity": RewardSpec(similarity.similarity, range=UNIT, graded=True),
    "reward_model": RewardSpec(reward_model.reward_model, asks_a_model=True),
    "preference_model": RewardSpec(preference_model.preference_model, asks_a_model=True),
    "llm_judge": RewardSpec(LLMJudge, asks_a_model=True),
    "pairwise_judge": RewardSpec(PairwiseJudge, asks_a_model=True),
    "agreement": RewardSpec(agreement.Agreement, members=agreement.members_of),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedReward:
    """Reward that a name leads to; a module or file of the campaign's own is not imported yet."""

    name: str
    origin: str
    """``keel``, a distribution with its version, or a module or file."""
    spec: RewardSpec | None
    """Facts; None for ``pkg.mod:name`` and ``file.py:name``, whose code is not imported to learn any."""

    @property
    def shipped(self) -> bool:
        """True for Keel's own code, which is trusted."""
        return self.origin == SHIPPED

    @property
    def level(self) -> Level:
        """Level of isolation under ``auto``."""
        stated = "inline" if self.spec is None else self.spec.isolation
        return stated if self.shipped else max("process", stated, key=LEVELS.index)

    def imported(self, where: str | None) -> RewardSpec:
        """Return the facts; import the reward's code for them if need be."""
        return self.spec or RewardSpec(import_reward(self.name, where))

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
        UserError: there is no such reward, there are several, or a distribution cannot be imported.
    """
    source, colon, _ = name.rpartition(":")
    if colon:
        return NamedReward(name=name, origin=source, spec=None)
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
    if spec is None:
        target = load_plugin(points[name][0], where)
        spec = target if isinstance(target, RewardSpec) else RewardSpec(target)
    return NamedReward(name=name, origin=origins[0], spec=spec)


def load_reward(
    name: str, options: Mapping[str, Any] | None = None, where: str | None = None
) -> RewardFunction:
    """Load the function behind a name, checked against its options.

    Raises a `UserError` when it cannot be imported, does not exist, cannot be called by a rubric,
    or does not take an option. ``where`` names the place in the campaign file.
    """
    return find_reward(name, where).load(options or {}, where)


def facts_of(name: str) -> RewardSpec | None:
    """Return what is known about a reward without code of the campaign's own; None: nothing is.

    A name that leads nowhere has no facts either: `load_reward` says what is wrong with it.
    """
    try:
        return find_reward(name).spec
    except UserError:
        return None


def describe(name: str) -> RewardInfo:
    """Describe a reward without calling it.

    Raises:
        UserError: there is no such reward, or it cannot be imported.
    """
    reward = find_reward(name)
    spec = reward.imported(None)
    try:
        info = read_info(name, reward.origin, spec.function)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name!r} has no readable signature", cause=str(error)) from error
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
