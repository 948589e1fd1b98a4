"""Planning of a round: what it samples, what scores it, and which earlier snapshots it is held to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from align.algorithms import Algorithm
from align.config.campaign import RewardConfig, RoundConfig
from align.data.examples.clashes import prompt_name
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.retirement import Retired, retired_of
from align.data.scorer import Scorer
from align.learner.references import References
from align.round.episodes.environments import longest_completion, open_environments
from align.round.plan import RoundPlan
from align.round.records.artifacts import earlier_artifacts, first_lines
from align.round.records.documents import index_lines, new_examples, next_documents
from align.round.records.history import earlier_history
from align.round.records.named_rounds import check_named_rounds
from align.round.records.rehearsal import rehearsal_of
from align.round.records.replay import load_replay, past_examples, require_replay, stored_answers
from align.round.records.retirement import retired_tokens, wholly_retired
from align.round.records.synthesis import synthesised
from align.round.reward_models import resolved
from align.round.session import Session, seed_of
from align.round.times.clock import phase
from rewards.rubric import Rubric, build_rubric
from rollouts.machine.stopping import signal_of
from rollouts.machine.variables import masked
from rollouts.prompts import PromptStream
from rollouts.types import Prompt, SnapshotId


@contextmanager
def begun_round(index: int, spec: RoundConfig, session: Session) -> Iterator[RoundPlan]:
    """Begin an attempt at a round and yield its plan; the block runs it.

    A failure is written down before it travels on. A committed round has nothing to go on with, and nor
    have its repairs: their checkpoints are removed.
    """
    ledger, note = session.ledger, session.observer.note
    if (report := session.inputs.reports.get(spec.name)) is not None:
        note(f"{spec.name}: {report}")
    parent = ledger.alias("production") or session.base
    attempt = ledger.begin_round(index, spec.name, parent)
    session.clock.restart()
    plan = plan_round(index, attempt, spec, parent, session)
    if (lookback := session.evidence.look_back(spec.name, "gate")).left_out:
        note(f"{spec.name}: {lookback.sentence}")
    for line in (*first_lines(spec, plan.artifacts), *index_lines(plan, session)):
        note(line)
    acting = [] if plan.environments is None else plan.environments.isolation_lines()
    for line in (*plan.scorer.isolation_lines(), *acting):
        note(f"{spec.name}: {line}")
    try:
        yield plan
    except BaseException as error:
        ledger.commit_round(index, attempt, "failed", None, {"error": failure_of(error)})
        raise
    finally:
        session.training = None
        session.keep_times(index, spec.name, attempt)
        plan.scorer.close()
        if plan.environments is not None:
            plan.environments.shutdown()
    session.store.forget_checkpoints(index, spec.name)


def failure_of(error: BaseException) -> str:
    """Return the reason for which an attempt at a round failed, for the ledger."""
    if name := signal_of(error):
        return f"the run was stopped by {name}; the next one goes on with it"
    return masked(str(error) or repr(error), os.environ)


@phase("start-up")
def plan_round(
    index: int, attempt: int, spec: RoundConfig, parent: SnapshotId, session: Session
) -> RoundPlan:
    """Fix what the round samples, what scores it and what it is held to."""
    evidence, inputs = session.evidence, session.inputs
    check_named_rounds([spec], evidence)
    accepted = evidence.accepted("policy")
    retired = evidence.replaced((*accepted, spec.name))
    rounds = {s.name: s for s in session.config.rounds if s.name in accepted.keys() - retired}
    shared = {name for name, earlier in rounds.items() if earlier.asks == spec.asks}
    in_bank = session.config.policy.bank is not None
    owning = [] if in_bank else owners(rounds, shared)
    replayed = evidence.look_back(spec.name, "replay", owning).kept
    looked_at = evidence.look_back(spec.name, "gate").kept
    needed = [name for name in owning if name in replayed or name in looked_at]
    for name in needed:
        require_replay(rounds[name], accepted[name], session)
    buffer = load_replay(session.store.paths, [accepted[name] for name in needed])
    asks = {name: inputs.prompts.get(name, ()) for name in rounds if name not in shared}
    later = asked_later(buffer.entries, asks, inputs.prompts[spec.name])
    retired_parts = retired_of(evidence.retirements((*accepted, spec.name)))
    owned = owned_prompts(buffer.entries, asks, inputs.prompts[spec.name])
    repair_prompts = ReplayBuffer(unretired(owned, retired_parts))
    seed = seed_of(session.config.seed, spec.name)
    general = inputs.general.get(spec.name)
    documents, change = next_documents(spec, parent, session)
    earlier = [(rounds[name], accepted[name]) for name in needed if name in replayed]
    spec = spec.model_copy(update={"algorithm": fitted_algorithm(spec)})
    barred = barred_prompts(later, retired_parts)
    past = replayed_prompts(spec, parent, repair_prompts, replayed, barred, session)
    return RoundPlan(
        index=index,
        attempt=attempt,
        spec=spec,
        references=References(base=session.base, parent=parent, rounds=accepted, over_base=in_bank),
        mixture=Mixture(
            new=PromptStream(inputs.prompts[spec.name], seed),
            past=past,
            general=None if general is None else PromptStream(general, seed),
            stored=stored_answers(spec, session),
            sampling=spec.sampling,
            replay=spec.replay,
            seed=seed,
            examples=new_examples(spec, seed, documents, inputs),
            past_examples=past_examples(spec, earlier, later, retired_parts, documents, session),
            rehearsal=rehearsal_of(
                spec, parent, past, partial(past_scorer, rounds, replayed, session), session
            ),
            history=earlier_history(spec, parent, session),
        ),
        scorer=scorer_of(spec, rounds, shared, replayed, session),
        seed=seed,
        retired=retired_tokens(retired, retired_parts, buffer.entries, inputs, documents),
        superseded=frozenset(retired | shared | wholly_retired(retired_parts, asks)),
        artifacts=earlier_artifacts(spec, parent, evidence),
        documents=documents,
        documents_change=change,
        repair_prompts=repair_prompts if len(repair_prompts) else None,
        environments=open_environments(session.config, {*needed, spec.name}, inputs.context),
    )


def fitted_algorithm(spec: RoundConfig) -> Algorithm:
    """Return a round's algorithm for completions of the round's length, and for rewards of their turns."""
    algorithm = spec.algorithm.for_round(longest_completion(spec))
    learns_turns = spec.turn_rewards and algorithm.credits_turns
    return algorithm.by_turn() if learns_turns else algorithm


def replayed_prompts(
    spec: RoundConfig,
    parent: SnapshotId,
    owned: ReplayBuffer,
    replayed: Sequence[str],
    barred: Mapping[str, frozenset[str]],
    session: Session,
) -> ReplayBuffer:
    """Return the prompts that stand for earlier rounds: the stored ones, or those that the parent writes.

    Args:
        owned: stored prompts, each under the last round that asked it.
        replayed: rounds that are replayed.
        barred: names of prompts that may not be written for each earlier round, see `synthesised`.
    """
    held_names, config = session.inputs.held_names, spec.replay.synthesis
    stored = ReplayBuffer(
        {
            name: [p for p in prompts if prompt_name(p) not in held_names]
            for name, prompts in owned.entries.items()
            if name in replayed
        }
    )
    if config is None or not spec.algorithm.trains_policy:
        return stored
    return synthesised(spec, config, parent, stored, barred, session)


def barred_prompts(
    later: Mapping[str, frozenset[str]], retired: Mapping[str, Retired]
) -> dict[str, frozenset[str]]:
    """Name the prompts that may not be written in the place of each earlier round's.

    Args:
        later: prompts that rounds after it ask, the coming one included.
        retired: parts of earlier rounds that later ones override.
    """
    overridden = frozenset(prompt for part in retired.values() for prompt in part.prompts)
    return {name: names | overridden for name, names in later.items()}


def owners(rounds: Mapping[str, RoundConfig], shared: set[str]) -> list[str]:
    """List earlier rounds whose prompts are replayed, each held to its own snapshot.

    Prompts that this round asks itself are not: the old behaviour would forbid the new one. Of rounds
    that shared their prompts only the last owns them, since its snapshot has all their behaviours.
    """
    last = {spec.asks: name for name, spec in rounds.items() if name not in shared}
    return [name for name in rounds if name in last.values()]


def asked_later(
    entries: Mapping[str, Sequence[Prompt]],
    asks: Mapping[str, Sequence[Prompt]],
    new: Sequence[Prompt],
) -> dict[str, frozenset[str]]:
    """Name the prompts that rounds after each accepted round ask, by `prompt_name`.

    Args:
        entries: kept prompts of the accepted rounds that are replayed.
        asks: all prompts of accepted rounds, oldest first.
        new: prompts of the coming round.
    """
    later = set(map(prompt_name, new))
    names: dict[str, frozenset[str]] = {}
    for name in reversed(list(asks)):
        if name in entries:
            names[name] = frozenset(later)
        later |= set(map(prompt_name, (*asks[name], *entries.get(name, ()))))
    return names


def owned_prompts(
    entries: Mapping[str, Sequence[Prompt]],
    asks: Mapping[str, Sequence[Prompt]],
    new: Sequence[Prompt],
) -> dict[str, list[Prompt]]:
    """Leave every prompt to the last round that asked it; return the kept prompts of each round.

    Files may share some of their prompts. Held to the snapshot of an earlier round as well, a shared one
    would forbid what the later round taught of it; so would one that the coming round asks itself.

    Args:
        entries: kept prompts of accepted rounds.
        asks: all prompts of accepted rounds, oldest first.
        new: prompts of the coming round.
    """
    later = asked_later(entries, asks, new)
    return {
        name: [prompt for prompt in prompts if prompt_name(prompt) not in later[name]]
        for name, prompts in entries.items()
    }


def unretired(
    entries: Mapping[str, Sequence[Prompt]], retired: Mapping[str, Retired]
) -> dict[str, list[Prompt]]:
    """Leave out the prompts that later rounds override, and rounds of which none is left.

    Held to the snapshot of the round that owned it, such a prompt would forbid what was taught since.

    Args:
        entries: kept prompts of accepted rounds.
        retired: parts of earlier rounds that later ones override, by their names.
    """
    remaining: dict[str, list[Prompt]] = {}
    for name, prompts in entries.items():
        gone = retired.get(name, Retired()).prompts
        remaining[name] = [prompt for prompt in prompts if prompt_name(prompt) not in gone]
        if gone and not remaining[name]:
            del remaining[name]
    return remaining


def scorer_of(
    spec: RoundConfig,
    rounds: Mapping[str, RoundConfig],
    shared: set[str],
    replayed: Sequence[str],
    session: Session,
) -> Scorer:
    """Build the round's own rewards, and those of accepted rounds with its prompts that stay.

    Args:
        rounds: accepted rounds by name.
        shared: those that ask the same prompts.
        replayed: earlier rounds whose prompts come up; their rewards score them where the round learns from
            those, or draws by them.
    """
    retained = [rounds[n] for n in rounds if n in shared and not spec.replaces(n)]
    rewards: list[RewardConfig] = []
    for reward in (reward for earlier in (*retained, spec) for reward in earlier.rewards):
        if reward not in rewards:
            rewards.append(reward)
    scored = spec.replay.rewards or spec.replay.draw.reads_scores
    past = past_scorer(rounds, replayed, session).past if scored else {}
    return Scorer(new=_rubric(rewards, session) if rewards else None, past=past)


def past_scorer(
    rounds: Mapping[str, RoundConfig], replayed: Sequence[str], session: Session
) -> Scorer:
    """Build the rewards of the rounds whose prompts are replayed, and no others."""
    past = {n: _rubric(rounds[n].rewards, session) for n in replayed if rounds[n].rewards}
    return Scorer(new=None, past=past)


def _rubric(rewards: Sequence[RewardConfig], session: Session) -> Rubric:
    models = session.evidence.accepted("reward_model")
    return build_rubric(resolved(rewards, models, session.folder_of))
