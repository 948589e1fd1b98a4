"""Prompts that a round's parent writes in place of stored ones, see `align.data.replay.synthesis`.

replay/synthetic-<hash>.jsonl    written again where the file is lost
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from align.data.examples.clashes import Measure, prompt_name, units_of
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.synthesis import Frame, cleaned, diverse, features_of, shown
from align.round.session import seed_of
from align.round.times.clock import phase
from rollouts.collect import collect
from rollouts.prompts import distinct, text_of
from rollouts.types import Prompt, Sampling, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.config.replay.synthesis import SynthesisConfig
    from align.round.session import Session


@phase("sampling")
def synthesised(
    spec: RoundConfig,
    config: SynthesisConfig,
    parent: SnapshotId,
    past: ReplayBuffer,
    barred: Mapping[str, AbstractSet[str]],
    session: Session,
) -> ReplayBuffer:
    """Load the prompts that the parent wrote; they are written when the round first begins.

    Prompts like those of a round belong to it and its snapshot. Those written freely, for all rounds of
    which nothing is stored, are held to the parent, under the name of the newest of these rounds.

    Args:
        past: stored prompts of the rounds that are replayed.
        barred: names of prompts that may not be written for each of them, since this round or a later one
            than it asks or overrides them: held to an earlier snapshot they would forbid what is new.
    """
    if not past.entries:
        return past
    seed = seed_of(session.config.seed, f"{spec.name}/synthesis")
    entries = {name: [p.id for p in prompts] for name, prompts in past.entries.items()}
    bars = {name: sorted(barred.get(name, ())) for name in entries}
    content = [parent, entries, config.model_dump(), seed, session.inputs.encoder.digest, bars]
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = session.store.paths.synthetic_prompts(name)
    if session.is_lost(path):
        session.hold(parent, "parent")
        written = ReplayBuffer()
        for round_, (shots, owner) in _groups(config, parent, past).items():
            names = barred.get(round_, frozenset())
            prompts = _written(spec, config, shots, names, f"{seed}/{round_}", session)
            written.add(round_, prompts, owner=owner, cap=config.count, seed=seed)
            session.observer.note(
                f"{spec.name}: its parent wrote {len(prompts)} prompts "
                + (f"like those of {round_}" if shots else "freely")
            )
        written.save(path)
        session.store.files.record([path])
    return ReplayBuffer.load(path)


def _groups(
    config: SynthesisConfig, parent: SnapshotId, past: ReplayBuffer
) -> dict[str, tuple[Sequence[Prompt], SnapshotId]]:
    """Return the stored prompts and the owner of each group of prompts to write, by its round."""
    groups: dict[str, tuple[Sequence[Prompt], SnapshotId]] = {}
    for name, prompts in past.entries.items():
        if prompts and config.shots:
            groups[name] = (prompts, prompts[0].owner or parent)
    free = [name for name in past.entries if name not in groups]
    return {**groups, free[-1]: ((), parent)} if free else groups


def _written(
    spec: RoundConfig,
    config: SynthesisConfig,
    stored: Sequence[Prompt],
    barred: AbstractSet[str],
    key: str,
    session: Session,
) -> list[Prompt]:
    """Let the engines, which hold the parent, write the prompts of one group; return the most diverse."""
    encoder, inputs = session.inputs.encoder, session.inputs
    frame = Frame.like((*stored, *inputs.prompts[spec.name])[0], encoder)
    listed = shown(stored, config, key)
    asking = [
        frame.asking(shots, config.separator, f"{key}/{number}")
        for number, shots in enumerate(listed)
    ]
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        stop_texts=frame.stops,
    )
    seed = seed_of(session.config.seed, key)
    groups = collect(
        session.engine, asking, [1] * len(asking), encoder, sampling, seed, policy="parent"
    )
    texts = [cleaned(group.completions_G[0].text, config) for group in groups]
    candidates = distinct(frame.prompt(text) for text in texts if text is not None)
    room = inputs.context - spec.sampling.max_tokens
    fitting = [p for p in candidates if 0 < len(encoder.encode(p)) <= room]
    barred = barred | {prompt_name(prompt) for prompt in stored}
    fresh = _unmeasured([p for p in fitting if prompt_name(p) not in barred], session)
    chosen = diverse([features_of(encoder.encode(p)) for p in fresh], config.count)
    return [fresh[position] for position in chosen]


def _unmeasured(prompts: Sequence[Prompt], session: Session) -> list[Prompt]:
    """Return the prompts that are in no suite and held out of no round, by the gate's own measure."""
    encoder, rule = session.inputs.encoder, session.config.gate.overlap
    measure = Measure(rule=rule, units=units_of(rule, encoder), items=0)
    items = [
        [measure.print(text) for text in item.texts]
        for suite in session.inputs.suites
        for item in suite.texts(encoder)
    ]
    prints = [measure.print(text_of(prompt)) for prompt in prompts]
    measured = {position for _, position in measure.matches(items, prints)}
    return [
        prompt
        for position, prompt in enumerate(prompts)
        if position not in measured and prompt_name(prompt) not in session.inputs.held_names
    ]
