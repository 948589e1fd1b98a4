"""Rows that a round keeps likely: its parent's best answers to earlier prompts, and pre-training texts.

replay/answers-<hash>.jsonl    the answers that were kept; sampled again where the file is lost
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from align.data.replay.buffer import ReplayBuffer
from align.data.replay.rehearsal import Rehearsed, answer_units, best_answers, confidence, rehearsed
from align.data.scorer import Scorer
from align.data.stored_answers import load_answers, save_answers
from align.gate.suites.kinds.acting import acting_content
from align.round.episodes.environments import acts, environments_of
from align.round.session import seed_of
from align.round.times.clock import phase
from rollouts.collect import collect
from rollouts.types import RolloutGroup, Sampling, SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable

    from align.config.campaign import RoundConfig
    from align.config.replay.answers import AnswersConfig
    from align.round.session import Session


def rehearsal_of(
    spec: RoundConfig,
    parent: SnapshotId,
    past: ReplayBuffer,
    scorer: Callable[[], Scorer],
    session: Session,
) -> list[Rehearsed]:
    """Return all rows that a round rehearses.

    Args:
        past: prompts of earlier rounds that may be replayed.
        scorer: makes what scores the answers by the rewards of the rounds their prompts belong to.
    """
    if not spec.algorithm.trains_policy:
        return []
    seed = seed_of(session.config.seed, spec.name)
    rows: list[Rehearsed] = []
    if (answers := spec.replay.answers) is not None and len(past):
        groups = parents_answers(spec, answers, parent, past, scorer, session)
        rate = spec.sampling.budget * answers.share
        rows += rehearsed(answer_units(groups), "answers", rate, seed)
    if (texts := spec.replay.pretraining) is not None:
        rows += rehearsed(session.inputs.texts[spec.name], "texts", texts.rows, seed)
    return rows


@phase("sampling")
def parents_answers(
    spec: RoundConfig,
    answers: AnswersConfig,
    parent: SnapshotId,
    past: ReplayBuffer,
    scorer: Callable[[], Scorer],
    session: Session,
) -> list[RolloutGroup]:
    """Load the parent's best answers to earlier prompts; they are sampled when the round first begins."""
    stored = (prompt for prompts in past.entries.values() for prompt in prompts)
    prompts = list({prompt.id: prompt for prompt in stored}.values())
    seed = seed_of(session.config.seed, f"{spec.name}/answers")
    sampling = Sampling(
        max_tokens=spec.sampling.max_tokens,
        temperature=answers.temperature,
        stop_texts=spec.sampling.stop,
    )
    rewards = {
        r.name: [reward.model_dump(mode="json") for reward in r.rewards]
        for r in session.config.rounds
        if r.name in past.entries
    }
    content = [
        parent, [(p.id, p.round) for p in prompts], sampling.max_tokens, seed, rewards,
        answers.model_dump(exclude={"share", "weight"}),
    ]  # fmt: skip
    acting = [r for r in session.config.rounds if r.name in past.entries and acts(r)]
    content += [[r.name, acting_content(r)] for r in acting]
    content += [spec.sampling.stop] if spec.sampling.stop else []
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    path = session.store.paths.general_answers(name)
    if session.is_lost(path):
        session.hold(parent, "parent")
        with environments_of(session.config, prompts, session.inputs.context) as environments:
            groups = collect(
                session.engine,
                prompts,
                [1] * len(prompts),
                session.encoder,
                sampling,
                seed,
                policy=parent,
                environments=environments,
            )
        scores = _scores(groups, answers, scorer)
        best = best_answers(groups, scores, keep=answers.keep, threshold=answers.threshold)
        save_answers(path, best)
        session.store.files.record([path])
        session.observer.note(
            f"{spec.name}: {len(best)} of {len(groups)} answers of the parent to earlier prompts are kept, "
            f"by {answers.by}"
        )
    return load_answers(path)


def _scores(
    groups: Sequence[RolloutGroup], answers: AnswersConfig, scorer: Callable[[], Scorer]
) -> Mapping[str, float]:
    """Return the score of each answer by the id of its prompt; those without one are left out."""
    if answers.by == "confidence":
        return {group.prompt.id: confidence(group.completions_G[0]) for group in groups}
    rubrics = scorer()
    try:
        scored = rubrics.score(groups)
    finally:
        rubrics.close()
    return {
        s.group.prompt.id: score.value
        for s in scored
        for score in s.scores_G
        if score.value is not None
    }
