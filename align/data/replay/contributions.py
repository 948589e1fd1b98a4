"""Contributions of earlier rounds to what a round replays, as lines for a person.

`align.data.replay.examples` holds the examples themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from align.data.replay.examples import USABLE

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig


def rounds_to_come(
    rounds: Sequence[RoundConfig], states: Mapping[str, str]
) -> Iterator[tuple[RoundConfig, list[RoundConfig]]]:
    """Yield each round without a verdict, and those before it that are accepted or without one too.

    Args:
        rounds: all rounds of the campaign, in order.
        states: state of every round in the ledger.
    """
    earlier: list[RoundConfig] = []
    for spec in rounds:
        state = states.get(spec.name)
        if state in ("rejected", "skipped"):
            continue
        if state != "accepted":
            yield spec, list(earlier)
        earlier.append(spec)


def replay_lines(rounds: Sequence[RoundConfig], states: Mapping[str, str]) -> list[str]:
    """Return what earlier rounds give to each round to come, beyond prompts in equal shares.

    Args:
        rounds: all rounds of the campaign, in order.
        states: state of every round in the ledger. A round to come counts as accepted.
    """
    return [
        line
        for spec, earlier in rounds_to_come(rounds, states)
        for lines in (draw_lines, answer_lines, contribution_lines)
        for line in lines(spec, earlier)
    ]


def draw_lines(spec: RoundConfig, earlier: Sequence[RoundConfig]) -> Iterator[str]:
    """Yield how a round draws the prompts that it replays, unless all earlier rounds get the same share."""
    replay, draw = spec.replay, spec.replay.draw
    if draw.name == "balanced" or not replay.past or spec.algorithm.makes != "policy":
        return
    owners = keeping_prompts(spec, earlier)
    line = f"round {spec.name}: replay.past {replay.past:g} is drawn by {draw.name}"
    if not owners and earlier:
        yield f"round {spec.name}: replays no prompts: {_nothing_kept(earlier)}"
        return
    if not owners:
        yield f"{line}, once an earlier round is accepted"
        return
    options = [f"{n} {v}" for n, v in draw.model_dump(exclude={"name"}).items()]
    unscored = [o.name for o in owners if draw.reads_scores and not o.rewards]
    yield (
        f"{line} ({', '.join(options)}) over prompts of "
        f"{', '.join(other.name for other in owners)}"
        + (f"; without rewards, so of success 0.5: {', '.join(unscored)}" if unscored else "")
    )


def answer_lines(spec: RoundConfig, earlier: Sequence[RoundConfig]) -> Iterator[str]:
    """Yield which answers and texts a round keeps likely beside its own loss."""
    if not spec.algorithm.trains_policy:
        return
    answers, texts = spec.replay.answers, spec.replay.pretraining
    owners = [other.name for other in keeping_prompts(spec, earlier)]
    synthesis = spec.replay.synthesis
    if synthesis is not None and owners:
        stored = any(other.replay.buffer for other in earlier)
        shown = "stored ones are shown to it and not replayed" if stored else "none are stored"
        yield (
            f"round {spec.name}: replay.synthesis {synthesis.count}: its parent writes the prompts that "
            f"stand for {', '.join(owners)}; {shown}"
        )
    if answers is not None and earlier and not owners:
        yield f"round {spec.name}: replay.answers does nothing: {_nothing_kept(earlier)}"
    if answers is not None and owners:
        yield (
            f"round {spec.name}: replay.answers {answers.share:g}: its parent answers the earlier prompts "
            f"of {', '.join(owners)} once, and the best {answers.keep:.0%} by {answers.by} are imitated"
        )
    if texts is not None:
        yield (
            f"round {spec.name}: replay.pretraining {texts.weight:g}: {texts.rows:g} windows a step of "
            f"{texts.source}"
        )


def contribution_lines(spec: RoundConfig, earlier: Sequence[RoundConfig]) -> Iterator[str]:
    """Yield what each earlier round gives a round that replays examples, and why some give nothing."""
    name = spec.name
    material = spec.algorithm.material
    if not spec.replay.examples or spec.algorithm.makes != "policy":
        return
    if material == "rollouts":
        yield (
            f"round {name}: replay.examples does nothing here: {spec.algorithm.name} learns from its own "
            "samples; replay.past samples earlier rounds' prompts again"
        )
        return
    giving = contributors(earlier, spec)
    share = f"round {name}: replay.examples {spec.replay.examples:g}"
    if not giving:
        yield f"{share} goes to its own {material}: no earlier round gives it any"
    for other in giving:
        yield f"{share} replays {other.algorithm.material} of {other.name}"
    for other in earlier:
        if other not in giving:
            yield f"{share} gets nothing of {other.name}: {_reason(other, spec)}"


def keeping_prompts(spec: RoundConfig, earlier: Sequence[RoundConfig]) -> list[RoundConfig]:
    """List the earlier rounds whose prompts a round may replay: stored ones, or written ones."""
    writes = spec.replay.synthesis is not None
    owners = [other for other in earlier if other.algorithm.makes == "policy"]
    return [other for other in owners if writes or other.replay.buffer]


def _nothing_kept(earlier: Sequence[RoundConfig]) -> str:
    """Say why no earlier round has prompts to replay."""
    if any(other.algorithm.makes == "policy" for other in earlier):
        return "replay.buffer of earlier rounds is 0, so that they store none"
    return "no earlier round makes a policy"


def contributors(earlier: Sequence[RoundConfig], spec: RoundConfig) -> list[RoundConfig]:
    """List the earlier rounds whose examples a round can learn from."""
    return [other for other in earlier if _reason(other, spec) is None]


def _reason(other: RoundConfig, spec: RoundConfig) -> str | None:
    """Return why a round gives another no examples; None if it gives some."""
    material, needed = other.algorithm.material, spec.algorithm.material
    if other.algorithm.makes != "policy":
        return "a reward model owns no behaviour of the policy"
    if material == "rollouts":
        return f"{other.algorithm.name} learnt from its own samples; replay.past samples its prompts again"
    if material not in USABLE.get(needed, ()):
        return f"it learnt from {material}, and {spec.algorithm.name} learns from {needed}"
    if other.asks == spec.asks:
        return "it has the same file, which this round reads itself"
    return None
