"""Choice of what a round overrides of earlier rounds: made, shown and kept before anything is measured.

Under ``mode: override`` exactly what the round contradicts is retired: prompts from replay, and with them
the anchors that hold them, examples that would be learnt again, and items of earlier rounds' suites from
the gate's comparisons. The choice follows from data, so a round that was interrupted makes it again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from align.data.examples.clashes import prompt_name
from align.data.examples.contradictions import (
    SHOWN,
    between,
    contradiction_lines,
    contradictions,
    shown,
)
from align.data.examples.stream import Unit
from align.data.replay.examples import OwnedExamples
from align.data.retirement import Retired, RetiredItems, RetiredPart, Retirement, retired_of
from align.gate.measurement.retired import forms_of
from align.gate.summary import counted
from align.round.inputs import Inputs
from align.round.records.opposition import opposed, suite_of

if TYPE_CHECKING:
    from align.config.campaign import RoundConfig
    from align.data.retrieval.index import DocumentIndex
    from align.gate.suites.suite import Suite
    from align.round.session import Session
    from align.store.ledger.ledger import Ledger
    from rollouts.types import Prompt, SnapshotId

WHY: Mapping[str, str] = {
    "pairs": "pairs in the opposite order",
    "ratings": "ratings turned round",
    "demonstrations": "other demonstrations",
}
"""Reasons by what both rounds learn from."""
OPPOSED = "examples that oppose each other"
"""Reason where the two rounds learn from different kinds of examples."""


def retire(index: int, spec: RoundConfig, session: Session) -> None:
    """Choose what a round overrides, write it down, and say it with examples.

    Under ``mode: add`` contradictions are only said. An interrupted round whose earlier rounds and data are
    what they were keeps its choice.
    """
    note = session.observer.note
    if spec.mode == "add":
        for line in _warnings(spec, session):
            note(line)
        return
    if spec.algorithm.makes != "policy":
        return
    path, files = session.store.paths.round(index, spec.name).retired, session.store.files
    earlier = _overridden(spec, session)
    basis = _basis(spec, earlier, session)
    retirement = None
    if files.hash_of(path) is not None and files.fault_of(path) is None:
        retirement = Retirement.load(path)
    if retirement is None or retirement.basis != basis:
        retirement = Retirement(
            round=spec.name, basis=basis, parts=tuple(_parts(spec, earlier, session))
        )
        retirement.save(path)
        files.record([path])
    whole = [other.spec.name for other in earlier if other.spec.asks == spec.asks]
    for line in override_lines(retirement, whole):
        note(line)


def override_lines(retirement: Retirement, whole: Sequence[str] = ()) -> Iterator[str]:
    """Yield what a round overrides, for people, with examples.

    Args:
        whole: earlier rounds with the same source, which the round replaces as a whole.
    """
    name = retirement.round
    for other in whole:
        yield f"{name}: replaces {other}, whose source it shares: its suite decides nothing any more"
    if not retirement.parts and not whole:
        yield f"{name}: mode: override retires nothing: it contradicts no earlier round"
    for part in retirement.parts:
        items = ""
        if part.items:
            rest = part.suite_items - len(part.items)
            left = f"{rest} still count" if rest else "none is left, so it decides nothing any more"
            items = f", and {len(part.items)} of the {part.suite_items} items of its suite: {left}"
        shown_first = f"; first: {part.shown}" if part.shown else ""
        yield (
            f"{name}: overrides {counted(len(part.prompts), 'prompt')} of {part.round} ({part.why})"
            f"{items}{shown_first}"
        )


def remaining_suites(
    rounds: Sequence[RoundConfig], inputs: Inputs, ledger: Ledger | None
) -> list[Suite]:
    """Return the suites without the items that rounds override by their files, for plans.

    Args:
        rounds: all rounds in view, in order; those that are neither rejected nor skipped count.
        ledger: of the store; None before the first run.
    """
    states = {} if ledger is None else {record.name: record.state for record in ledger.rounds()}
    counting = [spec for spec in rounds if states.get(spec.name) not in ("rejected", "skipped")]
    retired: list[RetiredItems] = []
    for index, spec in enumerate(counting):
        for other in counting[:index] if spec.algorithm.makes == "policy" else ():
            suite = suite_of(other.name, inputs.suites)
            if suite is None or not spec.replaces(other.name):
                continue
            if not (pairs := between(spec, other, inputs.examples, inputs.held_out)):
                continue
            units, prompts = {pair.earlier.id for pair in pairs}, {pair.prompt for pair in pairs}
            entry = RetiredItems(
                suite=other.name,
                by=spec.name,
                items=_items(suite, units, prompts),
                of=len(suite.item_ids),
                why=_why(spec, other),
            )
            retired.append(entry)
    remaining = [(suite, forms_of(suite, retired)) for suite in inputs.suites]
    return [
        forms[-1] if len(forms) == 1 else replace(forms[-1], larger=(suite.hash,))
        for suite, forms in remaining
    ]


def retired_tokens(
    whole: Collection[str],
    parts: Mapping[str, Retired],
    stored: Mapping[str, Sequence[Prompt]],
    inputs: Inputs,
    documents: DocumentIndex | None,
) -> dict[str, frozenset[tuple[int, ...]] | None]:
    """Return the prompts of earlier rounds that are overridden, as tokens; None for rounds that are whole.

    Args:
        whole: rounds that later ones replace.
        parts: parts of other rounds that later ones override, by their names.
        stored: prompts kept of rounds, whose files may be gone.
        documents: index that the coming round reads prompts behind; None: none.
    """
    wanted = {name for part in parts.values() for name in part.prompts}
    pools = (*inputs.prompts.values(), *stored.values()) if wanted else ()
    known = {name: p for pool in pools for p in pool if (name := prompt_name(p)) in wanted}
    encoder = inputs.encoder_with(documents)
    ids = {name: encoder.encode(prompt) for name, prompt in known.items()}
    tokens = {
        round_: frozenset(ids[name] for name in part.prompts if name in ids)
        for round_, part in parts.items()
    }
    return {**tokens, **dict.fromkeys(whole)}


def wholly_retired(
    parts: Mapping[str, Retired], asks: Mapping[str, Sequence[Prompt]]
) -> frozenset[str]:
    """Name the rounds whose prompts are all overridden; one whose prompts are not known is none of them."""
    return frozenset(
        name
        for name, part in parts.items()
        if asks.get(name) and all(prompt_name(prompt) in part.prompts for prompt in asks[name])
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Overridden:
    """One earlier round that may be overridden."""

    spec: RoundConfig
    snapshot: SnapshotId
    examples: Sequence[Unit]
    """All examples of its file, held-out ones included; none where it samples."""
    retired: Retired = field(default_factory=Retired)
    """Parts of it that other rounds have retired before."""


def _overridden(spec: RoundConfig, session: Session) -> list[Overridden]:
    """List the accepted rounds that a round may override, in order."""
    accepted = session.evidence.accepted("policy")
    retired = retired_of(session.evidence.retirements(tuple(accepted)))
    return [
        Overridden(
            spec=other,
            snapshot=accepted[other.name],
            examples=_known_examples(other, accepted[other.name], session),
            retired=retired.get(other.name, Retired()),
        )
        for other in session.config.rounds
        if other.name in accepted and other.name != spec.name and spec.replaces(other.name)
    ]


def _known_examples(spec: RoundConfig, snapshot: SnapshotId, session: Session) -> Sequence[Unit]:
    """Return an earlier round's examples: of its file, or what was kept where the file is gone."""
    examples = _examples(spec, session.inputs)
    if examples or spec.algorithm.material == "rollouts":
        return examples
    path = session.store.paths.replay_examples(snapshot)
    if session.store.files.hash_of(path) is None:
        return examples
    return OwnedExamples.load(session.store.files.check(path)).units


def _basis(spec: RoundConfig, earlier: Sequence[Overridden], session: Session) -> str:
    """Hash what a choice is made from: the examples and settings of all rounds in it, and snapshots."""

    def ids(units: Sequence[Unit]) -> list[str]:
        return [unit.id for unit in units]

    content = [
        spec.model_dump(mode="json", include={"algorithm", "prompts", "data", "rewards"}),
        ids(_examples(spec, session.inputs)),
        session.inputs.data_hashes(spec.name),
        [
            [
                other.spec.name,
                other.snapshot,
                ids(other.examples),
                sorted(other.retired.prompts),
            ]
            for other in earlier
        ],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(
    spec: RoundConfig, earlier: Sequence[Overridden], session: Session
) -> Iterator[RetiredPart]:
    """Yield what is retired of each earlier round, without what was retired before.

    The files of both come first; rewards and snapshots judge what these do not show.
    """
    new = _examples(spec, session.inputs)
    for other in earlier:
        suite = suite_of(other.spec.name, session.inputs.suites)
        materials = (spec.algorithm.material, other.spec.algorithm.material)
        pairs = [
            pair
            for pair in contradictions(new, other.examples, materials)
            if pair.earlier.id not in other.retired.examples
        ]
        if pairs:
            yield _part(
                other.spec.name,
                suite,
                _why(spec, other.spec),
                [(pair.prompt, pair.earlier.id) for pair in pairs],
                shown(pairs),
            )
        known = {pair.prompt for pair in pairs} | other.retired.prompts
        judged = opposed(spec, other.spec, other.snapshot, (new, other.examples), session)
        judged = [each for each in judged if each.prompt not in known]
        if judged:
            texts = list(dict.fromkeys(repr(each.text[:80]) for each in judged))
            yield _part(
                other.spec.name,
                suite,
                judged[0].why,
                [(each.prompt, unit) for each in judged for unit in each.units or ("",)],
                "; ".join(texts[:SHOWN]) + "; ..." * (len(texts) > SHOWN),
            )


def _why(spec: RoundConfig, other: RoundConfig) -> str:
    """Say for what reason examples of two rounds contradict each other."""
    material = spec.algorithm.material
    return WHY[material] if material == other.algorithm.material else OPPOSED


def _part(
    name: str,
    suite: Suite | None,
    why: str,
    contradicted: Sequence[tuple[str, str]],
    examples: str,
) -> RetiredPart:
    """Return what is retired of a round for one reason.

    Args:
        contradicted: names of prompts, each with the id of a contradicted example; the id is empty where
            the round learnt from a reward.
        examples: the first contradictions, for people.
    """
    prompts, units = (tuple(dict.fromkeys(column)) for column in zip(*contradicted, strict=True))
    return RetiredPart(
        round=name,
        why=why,
        prompts=prompts,
        examples=tuple(unit for unit in units if unit),
        items=() if suite is None else _items(suite, set(units), set(prompts)),
        suite_items=0 if suite is None else len(suite.item_ids),
        shown=examples,
    )


def _items(suite: Suite, units: set[str], prompts: set[str]) -> tuple[str, ...]:
    """Return the items of a round's suite that are contradicted.

    An item is an example itself; where the round has a suite of prompts, it is one that is contradicted.
    """
    if not suite.prompts:
        return tuple(item for item in suite.item_ids if item in units)
    return tuple(p.id for p in suite.prompts if prompt_name(p) in prompts)


def _examples(spec: RoundConfig, inputs: Inputs) -> Sequence[Unit]:
    """Return all examples of a round that reads a file; none of one that samples."""
    return (*inputs.examples.get(spec.name, ()), *inputs.held_out.get(spec.name, ()))


def _warnings(spec: RoundConfig, session: Session) -> Iterator[str]:
    """Yield the contradictions of a round with accepted ones, which it does not override."""
    accepted = session.evidence.accepted("policy")
    rounds = [r for r in session.config.rounds if r.name in accepted and r.name != spec.name]
    states = dict.fromkeys(accepted, "accepted")
    inputs = session.inputs
    yield from contradiction_lines([*rounds, spec], inputs.examples, states, inputs.held_out)
