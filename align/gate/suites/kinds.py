"""The kinds of suites a campaign file can ask for, each made from its entry and what that reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from align.config.campaign import CampaignConfig, PromptsConfig, RoundConfig
from align.config.gate import SuiteConfig
from align.gate.suites.rotation import check_pool, prompts_wanted, rotation_of
from align.gate.suites.rows_check import check_rows
from align.gate.suites.sequences import example_sequences, text_sequences
from align.gate.suites.suite import Kind, Suite
from align.gate.suites.win_rate import REFERENCE, duel_of, pair_prompts
from rollouts.errors import UserError
from rollouts.types import Prompt

if TYPE_CHECKING:
    from align.data.examples import Unit
    from rewards.rubric import Rubric
    from rollouts.prompts import PromptEncoder

Schemes = Mapping[str, Callable[[str], list[Prompt]]]


def capability_suite(
    config: CampaignConfig,
    index: int,
    schemes: Schemes,
    encoder: PromptEncoder,
    context: int | None,
) -> Suite:
    spec = config.suites[index]
    where = f"suites.{index}"
    budget = config.gate.budget_of(spec)
    if spec.harness is not None:
        return harness_suite(spec, where, encoder, context, budget)
    if spec.prompts is None or spec.metric is None:
        return Suite(
            name=spec.name,
            kind="likelihood",
            role=spec.role,
            margin=spec.margin,
            budget=budget,
            **text_sequences(spec, where, encoder),
        )
    suite = Suite(
        name=spec.name,
        kind="items",
        role=spec.role,
        margin=spec.margin,
        budget=budget,
        every=spec.every,
        duel=duel_of(config, spec, f"{where}.against"),
        metric=(spec.metric,),
        sampling=spec.sampling(spec.max_tokens or config.defaults.sampling.max_tokens),
    )
    suite = _with_items(suite, spec, config, schemes, f"{where}.prompts")
    shown = suite.pool if suite.duel is None else pair_prompts(suite.pool)
    rubric = _rubric(suite, spec.prompts, shown, f"{where}.metric", f"{where}.prompts")
    return replace(suite, rubric=rubric)


def harness_suite(
    spec: SuiteConfig, where: str, encoder: PromptEncoder, context: int | None, budget: float
) -> Suite:
    from align.gate.suites.harness.suite import load_harness

    harness = load_harness(spec, where, encoder, context)
    return Suite(
        name=spec.name,
        kind="items",
        role=spec.role,
        margin=spec.margin,
        budget=budget,
        every=spec.every,
        prompts=tuple(item.prompt for item in harness.items),
        harness=harness,
    )


def _with_items(
    suite: Suite, spec: SuiteConfig, config: CampaignConfig, schemes: Schemes, where: str
) -> Suite:
    """The suite with its prompts: all that there are, and those of the first round where they rotate."""
    assert spec.prompts is not None, "the check of the kind"
    turn = spec.rotate
    if turn is None:
        held_out = _held_out(spec.prompts, spec.items, forced=False)
        return replace(suite, prompts=_items(spec.name, held_out, spec.items, schemes, None, where))
    from rollouts.prompts import load_prompts

    wanted = prompts_wanted(spec.items, turn.share, turn.bridge, config.gate.campaign_rounds)
    held_out = _held_out(spec.prompts, wanted, forced=False)
    rotation = rotation_of(
        load_prompts(held_out, schemes, None, "general"),
        spec.items,
        turn.share,
        turn.bridge,
        seed=f"{config.seed}/{spec.name}",
    )
    check_pool(rotation, spec.name, where)
    return replace(suite, prompts=rotation.items(0), rotation=rotation)


def example_suite(spec: RoundConfig, index: int, examples: Sequence[Unit]) -> Suite:
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
        implicit=kind == "pairs"
        and own.pairs == "implicit_reward"
        and spec.algorithm.anchors_are_reference,
        **example_sequences(examples, own.items, f"rounds.{index}.data", own.cluster),
    )


def round_suite(
    spec: RoundConfig, index: int, schemes: Schemes, held_prompts: Sequence[Prompt] | None = None
) -> Suite:
    """Return the suite of a round's own rewards, measured on ``held_prompts`` if it holds prompts out."""
    own, where = spec.suite, f"rounds.{index}.suite.prompts"
    held_out = None
    if held_prompts is not None:
        where = f"rounds.{index}.prompts.heldout"
    elif own.prompts is not None:
        held_out = _held_out(own.prompts, own.items, forced=False)
    elif spec.prompts is not None and _is_demo(spec.prompts.source):
        held_out = _held_out(spec.prompts, own.items, forced=True)
    else:
        raise UserError(
            f"round {spec.name!r} trains on {spec.asks.source!r} and has no prompts to be "
            "measured on",
            where=where,
            cause="only demo:// sources come with an eval split of their own",
            remedy="hold a share of them out of training, prompts: {source: ..., heldout: 0.1}, or keep at "
            f"least {own.items} of its prompts out of training yourself and name them in {where}",
        )
    if held_prompts is not None:
        prompts = _held_items(spec, held_prompts, where)
    else:
        assert held_out is not None
        prompts = _items(spec.name, held_out, own.items, schemes, spec.name, where)
    suite = Suite(
        name=spec.name,
        kind="items",
        role="gate",
        margin=own.margin,
        budget=own.budget if own.budget is not None else 2 * own.margin,
        target_of=spec.name,
        prompts=prompts,
        metric=spec.rewards,
        sampling=own.sampling(own.max_tokens or spec.sampling.max_tokens),
    )
    rubric = _rubric(suite, held_out, prompts, f"rounds.{index}.rewards", where)
    return replace(suite, rubric=rubric)


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


def _rubric(
    suite: Suite, source: PromptsConfig | None, prompts: Sequence[Prompt], where: str, from_: str
) -> Rubric:
    """Return the metric, after a check that every row of ``source`` has the columns it needs."""
    from rewards.rubric import build_rubric
    from rewards.signatures.signature import required_columns

    rubric = build_rubric([spec.absolute for spec in suite.metric], where)
    needed = {column for part in rubric.parts for column in required_columns(part)}
    if suite.duel is not None:
        needed.discard(REFERENCE)
    if source is not None:
        check_rows(
            source,
            sorted(needed),
            suite.name,
            from_,
            reads=lambda column: any(part.takes.take(column) for part in rubric.parts),
        )
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
