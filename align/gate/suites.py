"""What every candidate is measured on: the campaign's suites and one per round.

A suite of *items* holds prompts and the rewards that score one completion of each. A suite of
*likelihood* holds given answers, or windows of a text, and an item's value is its mean logprob per
token in nats. A suite of *pairs* holds a better and a worse answer of each item, whose value is 1 where
the better one has the higher mean logprob. Higher is better in all. A suite is fixed before the first
round: its hash covers everything that decides a value. It never holds a training prompt, and nothing of
it goes back to the learner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, urlencode

from align.config import (
    CampaignConfig,
    PromptsConfig,
    RewardConfig,
    RoundConfig,
)
from align.gate.sequences import TokenPair, example_sequences, text_sequences
from rollouts.errors import UserError
from rollouts.types import Prompt, Sampling

if TYPE_CHECKING:
    from align.examples import Unit
    from rewards.rubric import Rubric
    from rollouts.prompts import PromptEncoder

Kind = Literal["items", "likelihood", "pairs"]
Schemes = Mapping[str, Callable[[str], list[Prompt]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRule:
    """What a decision needs to know of a suite; stored with every verdict."""

    name: str
    kind: Kind
    role: Literal["gate", "watch"]
    margin: float
    """Largest loss against the parent or the best so far, in units of the metric."""
    budget: float
    """Largest loss against the fixed anchor, over the whole campaign."""
    target_of: str | None
    """The round whose preference this suite measures; None for a capability."""
    hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One suite: fixed items and how a completion of each is scored."""

    name: str
    kind: Kind
    role: Literal["gate", "watch"]
    margin: float
    budget: float
    target_of: str | None = None
    prompts: tuple[Prompt, ...] = ()
    """Of an items suite."""
    metric: tuple[RewardConfig, ...] = ()
    rubric: Rubric | None = field(default=None, repr=False, compare=False)
    """Built from ``metric``."""
    sampling: Sampling | None = None
    """Temperature 0 is greedy. One completion per item."""
    sequences: tuple[TokenPair, ...] = ()
    """Prompt and completion of what is scored, not sampled. Of pairs: better, worse, better, ..."""
    sequence_ids: tuple[str, ...] = ()
    """Names of the items of a suite of sequences."""

    @property
    def item_ids(self) -> tuple[str, ...]:
        if self.kind == "items":
            return tuple(prompt.id for prompt in self.prompts)
        return self.sequence_ids

    @property
    def hash(self) -> str:
        """sha256 of everything that decides a value; not of margins, which only judge it."""
        sampling = self.sampling
        content = {
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
            ],
            "sequences": self.sequences,
        }
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
        )


def build_suites(
    config: CampaignConfig,
    schemes: Schemes,
    encoder: PromptEncoder,
    context: int | None = None,
    held_out: Mapping[str, Sequence[Unit]] | None = None,
) -> list[Suite]:
    """The campaign's suites, then one suite per round: its own rewards on held-out prompts.

    Args:
        schemes: resolves ``scheme://`` sources, such as ``{"demo": demo_prompts}``.
        encoder: tokenizes the texts of likelihood suites.
        context: prompt plus completion, in tokens, that engines are started for; None takes what
            the campaign declares.
        held_out: by round, the examples it must not learn from.

    Raises:
        UserError: a source is missing or too small, or items are also training prompts.
    """
    suites = [
        _capability_suite(config, index, schemes, encoder) for index in range(len(config.suites))
    ]
    for index, spec in enumerate(config.rounds):
        examples = (held_out or {}).get(spec.name)
        if examples is not None and spec.suite.prompts is None:
            suites.append(_example_suite(spec, index, examples))
        else:
            suites.append(_round_suite(spec, index, schemes))
    _forbid_overlap(suites, _training_prompts(config, schemes))
    _forbid_overlong(suites, context or config.rollouts.max_model_len, encoder)
    return suites


def rendered(prompt: Prompt) -> str:
    """What makes two prompts the same to a model: the text, or the messages."""
    if prompt.text is not None:
        return prompt.text
    return json.dumps([dict(message) for message in prompt.messages or ()], sort_keys=True)


def _capability_suite(
    config: CampaignConfig, index: int, schemes: Schemes, encoder: PromptEncoder
) -> Suite:
    spec = config.suites[index]
    where = f"suites.{index}"
    budget = spec.budget if spec.budget is not None else config.gate.total_budget
    if spec.prompts is None or spec.metric is None:
        return Suite(
            name=spec.name,
            kind="likelihood",
            role=spec.role,
            margin=spec.margin,
            budget=budget,
            **text_sequences(spec, where, encoder),
        )
    held_out = _held_out(spec.prompts, spec.items, forced=False)
    prompts = _items(spec.name, held_out, spec.items, schemes, None, f"{where}.prompts")
    return Suite(
        name=spec.name,
        kind="items",
        role=spec.role,
        margin=spec.margin,
        budget=budget,
        prompts=prompts,
        metric=(spec.metric,),
        rubric=_rubric((spec.metric,), prompts, f"{where}.metric"),
        sampling=Sampling(
            max_tokens=spec.max_tokens or config.defaults.sampling.max_tokens,
            temperature=spec.temperature,
        ),
    )


def _example_suite(spec: RoundConfig, index: int, examples: Sequence[Unit]) -> Suite:
    """What a round that learns from a file is measured on: the examples it never sees."""
    own = spec.suite
    kind: Kind = "pairs" if spec.algorithm.material == "pairs" else "likelihood"
    return Suite(
        name=spec.name,
        kind=kind,
        role="gate",
        margin=own.margin,
        budget=own.budget if own.budget is not None else 2 * own.margin,
        target_of=spec.name,
        **example_sequences(examples, own.items, f"rounds.{index}.data"),
    )


def _round_suite(spec: RoundConfig, index: int, schemes: Schemes) -> Suite:
    own, where = spec.suite, f"rounds.{index}.suite.prompts"
    if own.prompts is not None:
        held_out = _held_out(own.prompts, own.items, forced=False)
    elif spec.prompts is not None and _is_demo(spec.prompts.source):
        held_out = _held_out(spec.prompts, own.items, forced=True)
    else:
        raise UserError(
            f"round {spec.name!r} trains on {spec.asks.source!r} and has no prompts to be "
            "measured on",
            where=where,
            cause="only demo:// sources come with an eval split of their own",
            remedy=f"keep at least {own.items} of its prompts out of training and name them in "
            f"{where}",
        )
    prompts = _items(spec.name, held_out, own.items, schemes, spec.name, where)
    return Suite(
        name=spec.name,
        kind="items",
        role="gate",
        margin=own.margin,
        budget=own.budget if own.budget is not None else 2 * own.margin,
        target_of=spec.name,
        prompts=prompts,
        metric=spec.rewards,
        rubric=_rubric(spec.rewards, prompts, f"rounds.{index}.rewards"),
        sampling=Sampling(
            max_tokens=own.max_tokens or spec.sampling.max_tokens, temperature=own.temperature
        ),
    )


def _rubric(metric: Sequence[RewardConfig], prompts: Sequence[Prompt], where: str) -> Rubric:
    """The metric, known to find the columns it needs."""
    from rewards.rubric import build_rubric

    rubric = build_rubric(metric, where)
    rubric.check_columns(prompts, where)
    return rubric


def _is_demo(source: str) -> bool:
    return source.startswith("demo://")


def _held_out(prompts: PromptsConfig, items: int, *, forced: bool) -> PromptsConfig:
    """The eval split of a demo source, ``items`` long; any other source as it is.

    ``forced`` overrides what the source says, for a training source turned into its eval twin.
    """
    if not _is_demo(prompts.source):
        return prompts
    address, _, query = prompts.source.partition("?")
    wanted = {"split": "eval", "n": str(items)}
    given = dict(parse_qsl(query, keep_blank_values=True))
    options = {**given, **wanted} if forced else {**wanted, **given}
    source = f"{address}?{urlencode(options)}"
    return prompts.model_copy(update={"source": source, "limit": None if forced else prompts.limit})


def _items(
    name: str,
    prompts: PromptsConfig,
    items: int,
    schemes: Schemes,
    round: str | None,
    where: str,
) -> tuple[Prompt, ...]:
    """Exactly ``items`` distinct prompts: a repeated one would pretend to be more evidence."""
    from rollouts.prompts import load_prompts

    found = load_prompts(prompts, schemes, round, "new" if round else "general")
    if len(found) < items:
        raise UserError(
            f"suite {name!r} asks for {items} items and {prompts.source!r} has {len(found)}",
            where=where,
            remedy=f"give it more prompts, or set items to {len(found)} or less",
        )
    return tuple(found[:items])


def _training_prompts(config: CampaignConfig, schemes: Schemes) -> dict[str, str]:
    """Every rendered training prompt, with the words that name where it is trained on."""
    from rollouts.prompts import load_prompts

    places: dict[str, str] = {}
    pools: list[PromptsConfig] = []
    for spec in config.rounds:
        new = load_prompts(spec.prompts, schemes, spec.name, "new") if spec.prompts else ()
        for prompt in new:
            places.setdefault(rendered(prompt), f"the training prompts of round {spec.name!r}")
        pool = spec.replay.general_prompts
        if pool is None or pool in pools:
            continue
        pools.append(pool)
        for prompt in load_prompts(pool, schemes, None, "general"):
            places.setdefault(rendered(prompt), f"the general pool of round {spec.name!r}")
    return places


def _forbid_overlap(suites: Iterable[Suite], training: Mapping[str, str]) -> None:
    for suite in suites:
        shared = [text for text in map(rendered, suite.prompts) if text in training]
        if shared:
            place = training[shared[0]]
            count = sum(training[text] == place for text in shared)
            raise UserError(
                f"suite {suite.name!r} shares {count} of its {len(suite.prompts)} items with "
                f"{place}; the first: {shared[0][:200]!r}",
                where=suite.name,
                cause="an item that was trained on measures memory, not the behaviour",
                remedy="hold these prompts out: take them out of the one or of the other",
            )


def _forbid_overlong(
    suites: Iterable[Suite], max_model_len: int | None, encoder: PromptEncoder
) -> None:
    """Prompts and windows that the context cannot hold."""
    if max_model_len is None:
        return
    from rollouts.collect import check_lengths

    for suite in suites:
        if suite.sampling is not None:
            max_tokens = suite.sampling.max_tokens
            check_lengths(
                suite.prompts, encoder, max_tokens, max_model_len, f"suite {suite.name!r}"
            )
        # An engine scores a sequence by generating one token after it.
        longest = max((len(a) + len(b) for a, b in suite.sequences), default=0)
        if longest + 1 > max_model_len:
            raise UserError(
                f"sequences of suite {suite.name!r} are {longest} tokens long, the engines hold "
                f"{max_model_len}",
                where=suite.name,
                remedy=f"set its window to {max_model_len - 1} or less",
            )


def _metric_content(spec: RewardConfig) -> list[Any]:
    """A reward by name and options; one that lives in a file also by that file's bytes."""
    file = Path(spec.name.rpartition(":")[0])
    code = None
    if file.suffix == ".py" and file.is_file():
        code = hashlib.sha256(file.read_bytes()).hexdigest()
    return [spec.name, spec.weight, spec.part, spec.options, code]
