"""The suites that every candidate is measured on: the campaign's own and one per round.

`align.gate.suites.kinds` has the kinds. Higher values are better in all of them. A suite is fixed before
the first round, or its rotation is: its hash covers everything that decides a value. It never holds what is
trained on, word for word or nearly so, and nothing of it goes back to the learner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from align.config.campaign import CampaignConfig, PromptsConfig
from align.config.gate import OverlapConfig
from align.data.examples.clashes import units_of
from align.data.examples.holdout import trained_texts
from align.gate.overlap import Trained, find_overlaps, forbid
from align.gate.suites.demands import with_demands
from align.gate.suites.kinds import EXAMPLES, KINDS, answer_kind_of
from align.gate.suites.suite import Suite, SuiteEntry, SuiteRule, rendered
from rollouts.chat.probe import check_conversations, check_system
from rollouts.prompts import text_of

if TYPE_CHECKING:
    from align.data.examples import Unit
    from align.data.examples.round_data import RoundData
    from rollouts.prompts import PromptEncoder, Scheme
    from rollouts.types import Prompt

__all__ = ["Suite", "SuiteRule", "build_suites", "rendered"]


def build_suites(
    config: CampaignConfig,
    schemes: Mapping[str, Scheme],
    encoder: PromptEncoder,
    context: int | None = None,
    data: RoundData | None = None,
    stored: Collection[str] = (),
) -> list[Suite]:
    """Read the campaign's suites, then one suite per round: its own rewards on held-out prompts.

    Args:
        schemes: resolves ``scheme://`` sources, such as ``{"demo": demo_prompts}``.
        encoder: tokenizes the texts of likelihood suites.
        context: prompt plus completion, in tokens, that engines are started for; None takes what
            the campaign declares.
        data: what rounds learn from and are measured on; None: their prompts are read here.
        stored: hashes of suites that the store holds results of.

    Raises:
        UserError: a source is missing or too small, or items are also trained on.
    """
    context = context or config.rollouts.max_model_len
    suites: list[Suite] = [
        KINDS[spec.source].of_entry(
            SuiteEntry(
                spec=spec,
                where=f"suites.{index}",
                config=config,
                schemes=schemes,
                encoder=encoder,
                context=context,
            )
        )
        for index, spec in enumerate(config.suites)
    ]
    for index, spec in enumerate(config.rounds):
        held_units = data.held_out.get(spec.name) if data else None
        if held_units is not None and spec.suite.prompts is None:
            suites.append(EXAMPLES[spec.algorithm.material].of_examples(spec, index, held_units))
        else:
            prompts = data.held_prompts.get(spec.name) if data else None
            suites.append(answer_kind_of(spec).of_round(spec, index, schemes, prompts, context))
    suites = [with_demands(config, suite) for suite in suites]
    if encoder is not None:
        suites = _with_settings(suites, encoder.digest, engine_settings(config), stored)
    trained = chain(
        _trained_prompts(config, schemes, data),
        _trained_examples(data.examples if data else {}, encoder, "examples"),
        _trained_examples(data.texts if data else {}, encoder, "pre-training texts"),
    )
    stated = {spec.name: spec.system for spec in config.suites}
    stated |= {spec.name: spec.suite.system or spec.system for spec in config.rounds}
    for suite in suites:
        check_system(suite.pool, stated.get(suite.name), f"suite {suite.name!r}")
        check_conversations(encoder, suite.pool, f"suite {suite.name!r}")
    suites = _held_out_from(suites, trained, config.gate.overlap, encoder)
    if context is not None:
        for suite in suites:
            suite.check_fit(encoder, context)
    return suites


def engine_settings(config: CampaignConfig) -> dict[str, str]:
    """Return the settings of engines that change what the same weights answer."""
    policy = config.policy
    return {"dtype": policy.dtype, "serves": "adapters" if policy.serves_adapters else "weights"}


def _with_settings(
    suites: list[Suite], encoding: str, engine: Mapping[str, str], stored: Collection[str]
) -> list[Suite]:
    """Return the suites with hashes that cover tokenizer, chat template and engine settings.

    A store that began before hashes covered these holds results under older ones. There the hashes stay
    what they were, so that nothing is measured again that can still be compared.
    """
    suites = [_as_measured(suite, encoding, engine, stored) for suite in suites]
    encoded = [replace(suite, encoding=encoding) for suite in suites]
    for older in (suites, encoded):
        if any(suite.hash in stored for suite in older):
            return older
    return [replace(suite, engine=engine) for suite in encoded]


def _as_measured(
    suite: Suite, encoding: str, engine: Mapping[str, str], stored: Collection[str]
) -> Suite:
    """Return the suite in the form that the store has measured, where that is an earlier one."""
    for form in suite.earlier_forms:
        encoded = replace(form, encoding=encoding)
        if any(s.hash in stored for s in (form, encoded, replace(encoded, engine=engine))):
            return form
    return suite


def _held_out_from(
    suites: Sequence[Suite],
    trained: Iterable[Trained],
    rule: OverlapConfig,
    encoder: PromptEncoder,
) -> list[Suite]:
    """Return the suites with their overlap with training; refuse too much of it."""
    items = {suite.name: suite.texts(encoder) for suite in suites}
    overlaps = find_overlaps(items, trained, rule, units_of(rule, encoder))
    for overlap in overlaps.values():
        forbid(overlap)
    return [replace(suite, overlap=overlaps[suite.name]) for suite in suites]


def _trained_prompts(
    config: CampaignConfig, schemes: Mapping[str, Scheme], data: RoundData | None
) -> Iterator[Trained]:
    """Yield every prompt that is trained on, with the words that name where."""
    from rollouts.prompts import load_prompts

    pools: list[PromptsConfig] = []
    for spec in config.rounds:
        new: Sequence[Prompt] = ()
        if spec.prompts is not None:
            new = (
                data.prompts[spec.name]
                if data
                else load_prompts(spec.prompts, schemes, None, "new")
            )
        for prompt in new:
            description = f"the training prompts of round {spec.name!r}"
            yield Trained(text_of(prompt), description, prompt.location)
        pool = spec.replay.general_prompts
        if pool is None or pool in pools:
            continue
        pools.append(pool)
        general = data.general[spec.name] if data else load_prompts(pool, schemes, None, "general")
        for prompt in general:
            description = f"the general pool of round {spec.name!r}"
            yield Trained(text_of(prompt), description, prompt.location)


def _trained_examples(
    examples: Mapping[str, Sequence[Unit]], encoder: PromptEncoder, kind: str
) -> Iterator[Trained]:
    """Yield the prompts of examples, and every answer behind its prompt."""
    for name, units in examples.items():
        for unit in units:
            for text in trained_texts(unit, encoder):
                yield Trained(text, f"the {kind} of round {name!r}", unit.location)
