"""Contradictions that files alone do not show: judged by a reward, or by an earlier accepted snapshot.

Where one round learnt from a file and the other from a reward, the reward scores the file's answers: it
opposes a pair whose rejected answer it likes better. Where both learnt from rewards, the earlier round's
snapshot and its parent answer the prompts that both ask, and the rewards oppose each other on a prompt if
they order more of these answers in opposite ways than alike. Where the earlier round has no reward, as one
of demonstrations, its snapshot judges: it opposes a pair whose rejected answer is likelier under it, and
became so in that round. All of this is known before the new round takes a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING

from align.algorithms.rows import Row
from align.data.examples.clashes import prompt_name
from align.data.examples.stream import Unit
from align.data.replay.buffer import ReplayBuffer
from align.round.episodes.environments import acts, environments_of
from align.round.records.replay import require_replay
from align.round.reward_models import resolved
from align.round.session import Session, seed_of
from align.round.times.clock import phase
from rewards.rubric import build_rubric
from rollouts.collect import collect
from rollouts.engines.protocol import ScoreRequest
from rollouts.prompts import text_of
from rollouts.types import Completion, Prompt, RolloutGroup, Sampling, SnapshotId

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.gate.suites.suite import Suite

ANSWERS = 4
"""Answers of each of two snapshots by which two rewards are compared on a prompt."""
BY_REWARD = "a reward prefers the other answer"
BY_REWARDS = "its reward orders the answers the other way"
BY_SNAPSHOT = "its snapshot prefers the other answer"


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderedAnswers:
    """Two answers of a file to one prompt, and the examples that say which is better."""

    prompt: str
    """Name of the prompt."""
    prompt_ids: tuple[int, ...]
    better: Row
    worse: Row
    units: tuple[Unit, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opposed:
    """Prompt on which two rounds oppose each other."""

    prompt: str
    """Name of the prompt."""
    text: str
    units: tuple[str, ...] = ()
    """Ids of the earlier round's examples that are contradicted; empty if it learnt from a reward."""
    why: str


def opposed(
    spec: RoundConfig,
    other: RoundConfig,
    snapshot: SnapshotId,
    units: tuple[Sequence[Unit], Sequence[Unit]],
    session: Session,
) -> list[Opposed]:
    """Return the prompts of an earlier round that a round opposes, as far as files do not show them.

    Args:
        spec: round that begins.
        other: earlier round, which was accepted.
        snapshot: candidate of the earlier round.
        units: all examples of both, those of the new round first.
    """
    new_ones, old_ones = (list(ordered_answers(part)) for part in units)
    if spec.asks == other.asks:  # Replaced as a whole.
        return []
    if new_ones and other.rewards:
        return list(_by_reward(other, _asked(other, snapshot, session), new_ones, (), session))
    if old_ones and spec.rewards:
        return list(_by_reward(spec, _asked(spec, None, session), old_ones, old_ones, session))
    if spec.rewards and other.rewards:
        return list(_by_rewards(spec, other, snapshot, session))
    if new_ones and not old_ones:
        return list(_by_snapshot(other, snapshot, new_ones, units[1], session))
    return []


def ordered_answers(units: Sequence[Unit]) -> Iterator[OrderedAnswers]:
    """Yield the answers that a file prefers to others: its pairs, and its good to its bad ratings."""
    rated: dict[str, tuple[list[Unit], list[Unit]]] = {}
    for unit in units:
        if unit.prompt is None:
            continue
        if len(unit.rows) == 2:
            better, worse = unit.rows
            yield OrderedAnswers(
                prompt=unit.prompt.id,
                prompt_ids=better.prompt_ids,
                better=better,
                worse=worse,
                units=(unit,),
            )
        else:
            sides = rated.setdefault(unit.prompt.id, ([], []))
            sides[(unit.rows[0].advantage or 0.0) <= 0].append(unit)
    for name, (good, bad) in rated.items():
        for one_good, one_bad in product(good, bad):
            yield OrderedAnswers(
                prompt=name,
                prompt_ids=one_good.rows[0].prompt_ids,
                better=one_good.rows[0],
                worse=one_bad.rows[0],
                units=(one_good, one_bad),
            )


def last_turn(row: Row) -> tuple[int, ...]:
    """Return the tokens of the last turn of an answer, which a reward is shown as its text."""
    return row.completion_ids[row.observed[-1].end if row.observed else 0 :]


def discordant(scores: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """Tell if two scorings order more pairs of answers in opposite ways than alike; ties count for neither.

    >>> discordant([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), discordant([1.0, 2.0, 2.0], [1.0, 2.0, 0.0])
    (True, False)
    """
    balance = 0.0
    for i, j in combinations(range(len(scores)), 2):
        a, b, c, d = scores[i], scores[j], others[i], others[j]
        if a is not None and b is not None and c is not None and d is not None:
            agreement = (a - b) * (c - d)
            balance += math.copysign(1.0, agreement) if agreement else 0.0
    return balance < 0.0


def _asked(spec: RoundConfig, snapshot: SnapshotId | None, session: Session) -> dict[str, Prompt]:
    """Return the prompts of a round that samples, by name: of an earlier one those that are kept.

    Items of its suite are among them.
    """
    prompts: Sequence[Prompt] = session.inputs.prompts.get(spec.name, ())
    if snapshot is not None:
        require_replay(spec, snapshot, session)
        stored = ReplayBuffer.load(session.store.paths.replay(snapshot))
        prompts = stored.entries.get(spec.name, ())
    suite = suite_of(spec.name, session.inputs.suites)
    return {prompt_name(p): p for p in (*prompts, *(suite.prompts if suite else ()))}


def suite_of(name: str, suites: Iterable[Suite]) -> Suite | None:
    """Return the suite of a round; None if it is not looked at."""
    return next((suite for suite in suites if suite.target_of == name), None)


def _by_reward(
    rewarded: RoundConfig,
    prompts: Mapping[str, Prompt],
    stated: Sequence[OrderedAnswers],
    earlier: Sequence[OrderedAnswers],
    session: Session,
) -> Iterator[Opposed]:
    """Yield the prompts on which a round's rewards like the worse of two answers better.

    Args:
        stated: preferences of the other round's file.
        earlier: the same if the file is the earlier round's; else none.
    """
    known = [preference for preference in stated if preference.prompt in prompts]
    decode = session.inputs.encoder.decode
    groups = [
        _group(
            prompts[p.prompt],
            p.prompt_ids,
            [(row.completion_ids, decode(last_turn(row))) for row in (p.better, p.worse)],
        )
        for p in known
    ]
    for preference, (better, worse) in zip(known, _scores(rewarded, groups, session), strict=True):
        if better is not None and worse is not None and better < worse:
            yield Opposed(
                prompt=preference.prompt,
                text=text_of(prompts[preference.prompt]),
                units=tuple(unit.id for unit in preference.units) if earlier else (),
                why=BY_REWARD,
            )


def _by_rewards(
    spec: RoundConfig, other: RoundConfig, snapshot: SnapshotId, session: Session
) -> Iterator[Opposed]:
    """Yield the prompts on which the rewards of two rounds order answers in opposite ways."""
    new = _asked(spec, None, session)
    old = _asked(other, snapshot, session)
    shared = {name: prompt for name, prompt in new.items() if name in old}
    if not shared:
        return
    answers: dict[str, list[Completion]] = {name: [] for name in shared}
    ids: dict[str, tuple[int, ...]] = {}
    settings = other.sampling
    sampling = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        stop_texts=settings.stop,
    )
    questions, acting, context = list(shared.values()), list[Prompt](), session.inputs.context
    if acts(other):  # The earlier round's policy acts in the earlier round's environment.
        questions = acting = [replace(old[name], round=other.name) for name in shared]
    for each, title in ((snapshot, other.name), (_parent(other.name, session), "its parent")):
        session.observer.note(f"{spec.name}: {title} answers {len(shared)} prompts of both rounds")
        session.hold(each, title)
        seed = seed_of(session.config.seed, f"override/{spec.name}/{title}")
        sizes, encoder = [ANSWERS] * len(shared), session.encoder
        with phase("start-up"), environments_of(session.config, acting, context) as environments:
            groups = collect(
                session.engine,
                questions,
                sizes,
                encoder,
                sampling,
                seed,
                each,
                environments=environments,
            )
        for name, group in zip(shared, groups, strict=True):
            answers[name] += group.completions_G
            ids[name] = group.prompt_ids
    scorings = [
        _scores(
            rewarded,
            [
                RolloutGroup(
                    prompt=prompts[name],
                    prompt_ids=ids[name],
                    completions_G=tuple(answers[name]),
                    policy="file",
                    seed=0,
                )
                for name in shared
            ],
            session,
        )
        for rewarded, prompts in ((spec, new), (other, old))
    ]
    for name, scores, others in zip(shared, *scorings, strict=True):
        if discordant(scores, others):
            yield Opposed(prompt=name, text=text_of(shared[name]), why=BY_REWARDS)


def _by_snapshot(
    other: RoundConfig,
    snapshot: SnapshotId,
    stated: Sequence[OrderedAnswers],
    units: Sequence[Unit],
    session: Session,
) -> Iterator[Opposed]:
    """Yield the prompts on which an earlier snapshot learnt to prefer the worse of two answers.

    Args:
        units: all examples of the earlier round.
    """
    examples: dict[str, list[str]] = {}
    for unit in units:
        if unit.prompt is not None:
            examples.setdefault(unit.prompt.id, []).append(unit.id)
    prompts = _asked(other, snapshot, session)
    prompts |= {unit.prompt.id: unit.prompt for unit in units if unit.prompt is not None}
    known = [preference for preference in stated if preference.prompt in prompts]
    if not known:
        return
    margins: list[list[float]] = []
    for each, title in ((_parent(other.name, session), "parent"), (snapshot, other.name)):
        session.hold(each, title)
        requests = [
            ScoreRequest(prompt_ids=p.prompt_ids, completion_ids=row.completion_ids)
            for p in known
            for row in (p.better, p.worse)
        ]
        rows = [row for p in known for row in (p.better, p.worse)]
        with phase("start-up"):
            logprobs = session.engine.score(requests)
        sums = [
            math.fsum(logprobs_T[position] for position in row.sampled_positions)
            for row, logprobs_T in zip(rows, logprobs, strict=True)
        ]
        margins.append(
            [better - worse for better, worse in zip(sums[::2], sums[1::2], strict=True)]
        )
    for preference, before, after in zip(known, *margins, strict=True):
        if after < 0.0 and after < before:
            text = text_of(prompts[preference.prompt])
            yield Opposed(
                prompt=preference.prompt,
                text=text,
                units=tuple(examples.get(preference.prompt, ())),
                why=BY_SNAPSHOT,
            )


def _parent(name: str, session: Session) -> SnapshotId:
    """Return the snapshot that an accepted round started from."""
    parents = {record.name: record.parent for record in session.ledger.rounds()}
    return parents[name] or session.base


def _group(
    prompt: Prompt, prompt_ids: tuple[int, ...], answers: Sequence[tuple[tuple[int, ...], str]]
) -> RolloutGroup:
    """Return answers to a prompt as a reward is shown them."""
    completions = tuple(
        Completion(token_ids=ids, logprobs_T=(0.0,) * len(ids), text=text, finish_reason="stop")
        for ids, text in answers
    )
    return RolloutGroup(
        prompt=prompt, prompt_ids=prompt_ids, completions_G=completions, policy="file", seed=0
    )


def _scores(
    spec: RoundConfig, groups: Sequence[RolloutGroup], session: Session
) -> list[list[float | None]]:
    """Score answers by a round's rewards; None for one that has no score."""
    if not groups:
        return []
    models = session.evidence.accepted("reward_model")
    settings = [reward.absolute for reward in spec.rewards]
    rubric = build_rubric(resolved(settings, models, session.folder_of))
    try:
        return [[score.value for score in scored.scores_G] for scored in rubric.score(groups)]
    finally:
        rubric.close()
