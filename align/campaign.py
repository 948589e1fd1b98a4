"""A campaign: its due rounds in order, each from what production is by then.

Whatever happened before is read from the ledger: a finished round is never run again, an interrupted
one starts over from its parent with the same seed, so a campaign that was killed ends where an
undisturbed one does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from align.config.campaign import CampaignConfig, RewardConfig, RoundConfig
from align.data.examples.clashes import prompt_name
from align.data.examples.stream import ExampleStream
from align.data.mixture import Mixture
from align.data.replay import ReplayBuffer
from align.data.scorer import Scorer
from align.data.stored_answers import load_answers, save_answers
from align.gate.budgets import check_budgets
from align.gate.evidence import Evidence, in_view, view_of_due
from align.gate.overlap import save_overlaps
from align.gate.power.underpowered import check_power, foresee
from align.gate.sealed import any_due
from align.learner.references import References
from align.round.artifacts import check_artifacts, earlier_artifacts, first_lines
from align.round.external.round import run_external_round
from align.round.inputs import only_of
from align.round.measurement.damage import survey
from align.round.measurement.measuring import measure_again, measure_known, open_sealed
from align.round.plan import RoundOutcome, RoundPlan
from align.round.reward_models import resolved
from align.round.reward_round import run_reward_round
from align.round.round import run_round
from align.round.session import (
    Observer,
    Parts,
    StartEngine,
    open_memory,
    open_parts,
    seed_of,
)
from align.round.times.clock import phase
from align.schedule.checked import load_checked, open_claims
from align.schedule.inbox.feed import fed, starved
from align.store.auto import auto_lines
from align.store.changes.amend import dropped_lines
from align.store.changes.gone import gone_lines
from align.store.changes.settle import settle
from align.store.paths import StorePaths
from rewards.rubric import Rubric, build_rubric
from rollouts.collect import collect
from rollouts.prompts import PromptStream
from rollouts.types import Prompt, RolloutGroup, Sampling, SnapshotId


def run_campaign(
    config: CampaignConfig, *, start_engine: StartEngine, observer: Observer
) -> Evidence:
    """Run every round that is not finished yet; returns what is known of the campaign then.

    Rounds with a schedule are among them once they fell due, see `align.schedule`.

    Raises:
        UserError: the campaign, its inputs or its store cannot be used; nothing was changed.
        RunError: a round failed on the way; finished rounds stay as they are.
    """
    written = config
    settled = settle(config)
    settled.check()
    config, known = settled.config, settled.ledger
    view = view_of_due(config, known)
    inputs = load_checked(view, open_claims(known))
    closed = frozenset() if known is None else known.closed()
    if any(spec.name not in closed for spec in config.rounds):
        for line in check_power(foresee(view, inputs.suites, known), config.gate):
            observer.note(line)
    for line in dropped_lines(written, known.database) if known else ():
        observer.note(line)
    with open_memory(settled, inputs, observer.note) as memory:
        places = {r.name: r.index for r in memory.ledger.rounds() if not r.closed}
        decided = [record.name for record in memory.evidence.committed()]
        state = survey(memory.evidence, inputs, lambda s: memory.store.open(s).path)
        for line in (*gone_lines(config.rounds, decided), *state.lines()):
            observer.note(line)
        due = [
            (places[spec.name], spec)
            for spec in config.rounds
            if spec.name in places and not starved(config, memory.ledger, spec, observer.note)
        ]
        save_overlaps(config.folder, [s.overlap for s in inputs.suites if s.overlap])
        if not due and not state.measurable and not any_due(memory.evidence):
            observer.note("no round is due; nothing to run")
            memory.confirm_base()
            return memory.evidence
        check_artifacts([spec for _, spec in due], memory.evidence)
        for line in auto_lines(written, config):
            observer.note(line)
        started = open_parts(config, inputs, memory, start_engine=start_engine, observer=observer)
        with started as parts:
            measure_again(parts, state.measurable)
            for index, spec in due:
                if spec.name in memory.ledger.closed():
                    observer.note(f"{spec.name} was skipped meanwhile")
                    continue
                if starved(config, memory.ledger, spec, observer.note):
                    continue
                view = in_view(memory.evidence, [spec.name])
                taken = fed(inputs, view, memory.ledger, spec)
                parts = replace(parts, inputs=only_of(taken, view))
                open_sealed(parts)
                measure_known(parts, spec.name)
                check_budgets(parts.evidence, spec, parts.suites(), parts.observer.note)
                run_one(index, spec, parts)
            open_sealed(parts)
        return memory.evidence


def run_one(index: int, spec: RoundConfig, parts: Parts) -> None:
    """Plan, run and report one round; a failure is written down before it travels on."""
    if (report := parts.inputs.reports.get(spec.name)) is not None:
        parts.observer.note(f"{spec.name}: {report}")
    parent = parts.ledger.alias("production") or parts.base
    attempt = parts.ledger.begin_round(index, spec.name, parent)
    parts.clock.restart()
    plan = plan_round(index, attempt, spec, parent, parts)
    if (lookback := parts.evidence.look_back(spec.name, "gate")).left_out:
        parts.observer.note(f"{spec.name}: {lookback.sentence}")
    for line in first_lines(spec, plan.artifacts):
        parts.observer.note(line)
    for line in plan.scorer.isolation_lines():
        parts.observer.note(f"{spec.name}: {line}")
    try:
        outcome = runner_of(spec)(plan, parts)
    except BaseException as error:
        parts.ledger.commit_round(
            index, attempt, "failed", None, {"error": str(error) or repr(error)}
        )
        raise
    finally:
        parts.keep_times(index, spec.name, attempt)
        plan.scorer.close()
    parts.forget_checkpoints(plan)
    parts.observer.on_verdict(plan, outcome)


def runner_of(spec: RoundConfig) -> Callable[[RoundPlan, Parts], RoundOutcome]:
    """Return what makes the candidate of a round and puts it before the gate."""
    if spec.algorithm.makes == "reward_model":
        return run_reward_round
    return run_round if spec.algorithm.learns_here else run_external_round


@phase("start-up")
def plan_round(
    index: int, attempt: int, spec: RoundConfig, parent: SnapshotId, parts: Parts
) -> RoundPlan:
    """Fix what the round samples, what scores it and what it is held to."""
    accepted = parts.evidence.accepted("policy")
    retired = parts.evidence.retired((*accepted, spec.name))
    before = {s.name: s for s in parts.config.rounds if s.name in accepted.keys() - retired}
    shared = {name for name, earlier in before.items() if earlier.asks == spec.asks}
    owned = owners(before, shared)
    replayed = parts.evidence.look_back(spec.name, "replay", owned).kept
    looked_at = parts.evidence.look_back(spec.name, "gate").kept
    needed = [name for name in owned if name in replayed or name in looked_at]
    for name in needed:
        parts.require_replay(before[name], accepted[name])
    held = load_replay(parts.folder, [accepted[name] for name in needed])
    asks = {name: parts.inputs.prompts.get(name, ()) for name in before if name not in shared}
    held = ReplayBuffer(owned_prompts(held.entries, asks, parts.inputs.prompts[spec.name]))
    seed = seed_of(parts.config.seed, spec.name)
    general = parts.inputs.general.get(spec.name)
    examples = parts.inputs.examples.get(spec.name)
    algorithm = spec.algorithm.for_round(spec.sampling.max_tokens)
    spec = spec.model_copy(update={"algorithm": algorithm})
    return RoundPlan(
        index=index,
        attempt=attempt,
        spec=spec,
        references=References(base=parts.base, parent=parent, rounds=accepted),
        mixture=Mixture(
            new=PromptStream(parts.inputs.prompts[spec.name], seed),
            past=ReplayBuffer(
                {
                    name: [p for p in kept if prompt_name(p) not in parts.inputs.held_names]
                    for name, kept in held.entries.items()
                    if name in replayed
                }
            ),
            general=None if general is None else PromptStream(general, seed),
            stored=stored_answers(spec, parts),
            sampling=spec.sampling,
            replay=spec.replay,
            seed=seed,
            examples=None if examples is None else ExampleStream(examples, seed),
        ),
        scorer=scorer_of(spec, before, shared, replayed, parts),
        seed=seed,
        artifacts=earlier_artifacts(spec, parent, parts.evidence),
        held=held,
    )


@phase("sampling")
def stored_answers(spec: RoundConfig, parts: Parts) -> list[RolloutGroup]:
    """The start's own answers to the general pool, sampled when a round first asks for them."""
    general = parts.inputs.general.get(spec.name)
    if general is None or spec.replay.general_answers != "stored":
        return []
    sampling = Sampling(
        max_tokens=spec.replay.general_tokens or spec.sampling.max_tokens,
        temperature=spec.sampling.temperature,
    )
    seed = seed_of(parts.config.seed, "general")
    what = json.dumps([sorted(p.id for p in general), asdict(sampling), seed, spec.replay.buffer])
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    path = parts.evidence.store.paths.general_answers(name)
    if parts.is_lost(path):
        parts.learner.load(parts.base)
        parts.engine.sync(parts.learner.weights("base"))
        prompts = PromptStream(general, seed).take(spec.replay.buffer)
        sizes = [1] * len(prompts)
        save_answers(
            path,
            collect(
                parts.engine,
                prompts,
                sizes,
                parts.inputs.encoder,
                sampling,
                seed,
                policy=parts.base,
            ),
        )
        parts.evidence.files.record([path])
    return load_answers(path)


def owners(before: Mapping[str, RoundConfig], shared: set[str]) -> list[str]:
    """Earlier rounds whose prompts are replayed, each held to its own snapshot.

    Prompts that this round asks itself are not: the old behaviour would forbid the new one. Of rounds
    that shared their prompts only the last owns them, since its snapshot has all their behaviours.
    """
    last = {spec.asks: name for name, spec in before.items() if name not in shared}
    return [name for name in before if name in last.values()]


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
    later = set(map(prompt_name, new))
    owned: dict[str, list[Prompt]] = {}
    for name in reversed(list(asks)):
        kept = entries.get(name, ())
        if name in entries:
            owned[name] = [prompt for prompt in kept if prompt_name(prompt) not in later]
        later |= set(map(prompt_name, (*asks[name], *kept)))
    return {name: owned[name] for name in entries}


def scorer_of(
    spec: RoundConfig,
    before: Mapping[str, RoundConfig],
    shared: set[str],
    replayed: Sequence[str],
    parts: Parts,
) -> Scorer:
    """The round's own rewards, and under ``mode: add`` those of accepted rounds with its prompts.

    Args:
        replayed: earlier rounds whose prompts come up, and their rewards where those are learned from.
    """
    retained = [before[n] for n in before if n in shared] if spec.mode == "add" else []
    own: list[RewardConfig] = []
    for reward in (reward for earlier in (*retained, spec) for reward in earlier.rewards):
        if reward not in own:
            own.append(reward)
    models = parts.evidence.accepted("reward_model")

    def rubric(rewards: Sequence[RewardConfig]) -> Rubric:
        return build_rubric(resolved(rewards, models, parts.folder_of))

    past = {
        n: rubric(before[n].rewards) for n in replayed if before[n].rewards and spec.replay.rewards
    }
    return Scorer(new=rubric(own) if own else None, past=past)


def load_replay(folder: Path, accepted: Sequence[SnapshotId]) -> ReplayBuffer:
    """The kept prompts of some accepted rounds."""
    entries: dict[str, Sequence[Prompt]] = {}
    for candidate in accepted:
        entries |= ReplayBuffer.load(StorePaths(folder).replay(candidate)).entries
    return ReplayBuffer(entries)
