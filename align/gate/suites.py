"""What every candidate is measured on: the campaign's suites and one per round.

A suite of *items* holds prompts and the rewards that score one completion of each, or a task of the
lm-evaluation-harness that asks and scores itself (`align.gate.harness`). A suite of
*likelihood* holds given answers, or windows of a text, and an item's value is its mean logprob per
token in nats. A suite of *pairs* holds a better and a worse answer of each item, whose value is 1 where
the better one has the higher mean logprob. Higher is better in all. A suite is fixed before the first
round, or its rotation is: its hash covers everything that decides a value. It never holds what is
trained on, word for word or nearly so, and nothing of it goes back to the learner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.config import CampaignConfig, PromptsConfig
from align.gate.demands import with_demands
from align.gate.kinds import Schemes, capability_suite, example_suite, round_suite
from align.gate.overlap import Trained, find_overlap, forbid, words
from align.gate.suite import Kind, Suite, SuiteRule, rendered, text_of
from rollouts.errors import UserError

if TYPE_CHECKING:
    from align.examples import Unit
    from rollouts.prompts import PromptEncoder

__all__ = ["Kind", "Schemes", "Suite", "SuiteRule", "build_suites", "rendered"]


def build_suites(
    config: CampaignConfig,
    schemes: Schemes,
    encoder: PromptEncoder,
    context: int | None = None,
    held_out: Mapping[str, Sequence[Unit]] | None = None,
    examples: Mapping[str, Sequence[Unit]] | None = None,
) -> list[Suite]:
    """The campaign's suites, then one suite per round: its own rewards on held-out prompts.

    Args:
        schemes: resolves ``scheme://`` sources, such as ``{"demo": demo_prompts}``.
        encoder: tokenizes the texts of likelihood suites.
        context: prompt plus completion, in tokens, that engines are started for; None takes what
            the campaign declares.
        held_out: by round, the examples it must not learn from.
        examples: by round, those it does learn from.

    Raises:
        UserError: a source is missing or too small, or items are also trained on.
    """
    context = context or config.rollouts.max_model_len
    suites = [
        capability_suite(config, index, schemes, encoder, context)
        for index in range(len(config.suites))
    ]
    for index, spec in enumerate(config.rounds):
        held = (held_out or {}).get(spec.name)
        if held is not None and spec.suite.prompts is None:
            suites.append(example_suite(spec, index, held))
        else:
            suites.append(round_suite(spec, index, schemes))
    suites = [with_demands(config, suite) for suite in suites]
    trained = list(_trained_prompts(config, schemes))
    trained += _trained_examples(examples or {}, encoder)
    suites = [_held_out_from(suite, trained, config, encoder) for suite in suites]
    _forbid_overlong(suites, context, encoder)
    return suites


def _held_out_from(
    suite: Suite, trained: Sequence[Trained], config: CampaignConfig, encoder: PromptEncoder
) -> Suite:
    """The suite with what it has in common with training, which is little enough."""
    rule = config.gate.overlap

    def tokens(text: str) -> list[int]:
        return list(encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    items: list[tuple[str, ...]] = [(text_of(prompt),) for prompt in suite.pool]
    if suite.sequences:
        texts = [encoder.decode((*asked, *said)) for asked, said in suite.sequences]
        size = len(texts) // len(suite.sequence_ids)
        items = [tuple(texts[i : i + size]) for i in range(0, len(texts), size)]
    units = tokens if rule.unit == "tokens" else words
    overlap = find_overlap(suite.name, items, trained, rule, units)
    forbid(overlap)
    return replace(suite, overlap=overlap)


def _trained_prompts(config: CampaignConfig, schemes: Schemes) -> Iterator[Trained]:
    """Every prompt that is trained on, with the words that name where."""
    from rollouts.prompts import load_prompts

    pools: list[PromptsConfig] = []
    for spec in config.rounds:
        new = load_prompts(spec.prompts, schemes, spec.name, "new") if spec.prompts else ()
        for prompt in new:
            yield Trained(text_of(prompt), f"the training prompts of round {spec.name!r}")
        pool = spec.replay.general_prompts
        if pool is None or pool in pools:
            continue
        pools.append(pool)
        for prompt in load_prompts(pool, schemes, None, "general"):
            yield Trained(text_of(prompt), f"the general pool of round {spec.name!r}")


def _trained_examples(
    examples: Mapping[str, Sequence[Unit]], encoder: PromptEncoder
) -> Iterator[Trained]:
    """The prompts of examples, and every answer behind its prompt."""
    for name, units in examples.items():
        place = f"the examples of round {name!r}"
        for unit in units:
            if unit.prompt is not None:
                yield Trained(text_of(unit.prompt), place)
            for row in unit.rows:
                yield Trained(encoder.decode((*row.prompt_ids, *row.completion_ids)), place)


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
            check_lengths(suite.pool, encoder, max_tokens, max_model_len, f"suite {suite.name!r}")
        # An engine scores a sequence by generating one token after it.
        longest = max((len(a) + len(b) for a, b in suite.sequences), default=0)
        if longest + 1 > max_model_len:
            raise UserError(
                f"sequences of suite {suite.name!r} are {longest} tokens long, the engines hold "
                f"{max_model_len}",
                where=suite.name,
                remedy=f"set its window to {max_model_len - 1} or less",
            )
