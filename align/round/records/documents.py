"""Documents of a round: the version of the index that its candidate reads, and what is read behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.config.campaign import CampaignConfig, RoundConfig
from align.config.retrieval.settings import RetrievalConfig
from align.data.examples.stream import ExampleStream, Unit
from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import ChangeCounts, DocumentIndex
from align.data.retrieval.record import record_of
from align.data.retrieval.tool import SearchingEncoder
from align.gate.summary import counted
from align.round.episodes.environments import acts, cramped_lines
from align.round.inputs import Inputs
from rollouts.types import SnapshotId

if TYPE_CHECKING:
    from align.round.plan import RoundPlan
    from align.round.session import Session


def next_documents(
    spec: RoundConfig, parent: SnapshotId, session: Session
) -> tuple[DocumentIndex | None, ChangeCounts | None]:
    """Return the parent's index with the round's change, and what it changes; None where there is none."""
    if spec.algorithm.makes != "policy":
        return None, None
    index = session.documents_of(parent)
    change = session.inputs.index_changes.get(spec.name)
    if change is None:
        return index, None
    if index is None:
        settings = session.config.policy.retrieval or RetrievalConfig()
        index = DocumentIndex(settings=settings, embedder=session.embedder)
    return index.changed(change, spec.name)


def reading_units(
    units: Sequence[Unit], documents: DocumentIndex | None, inputs: Inputs
) -> Sequence[Unit]:
    """Return units of a file whose prompts are read behind documents; without any the units themselves."""
    encoder = inputs.encoder_with(documents)
    if not isinstance(encoder, RetrievingEncoder):
        return units
    return [encoder.reading_unit(unit) for unit in units]


def new_examples(
    spec: RoundConfig, seed: int, documents: DocumentIndex | None, inputs: Inputs
) -> ExampleStream | None:
    """Return the examples of a round's own file, read behind documents; None for a round without."""
    units = inputs.examples.get(spec.name)
    return None if units is None else ExampleStream(reading_units(units, documents, inputs), seed)


def prompted(units: Sequence[Unit], known: Sequence[Unit]) -> list[Unit]:
    """Return kept units with the prompts of the file that they are of; those it has no more as they are."""
    prompts = {unit.id: unit.prompt for unit in known}
    return [
        unit
        if (prompt := prompts.get(unit.id.partition("/")[0])) is None
        else replace(unit, prompt=prompt)
        for unit in units
    ]


def index_lines(plan: RoundPlan, session: Session) -> Iterator[str]:
    """Yield what a person should know of the documents that the round's candidate reads."""
    record = record_of(plan.documents, plan.documents_change)
    if record is not None:
        name = plan.spec.name
        yield f"{name}: {record.sentence}"
        for line in _reading_lines(name, plan.documents, session.inputs):
            yield f"{name}: {line}"
        for line in _cramped_lines(plan.spec, plan.documents, session.config, session.inputs):
            yield f"{name}: {line}"


def planned_lines(config: CampaignConfig, inputs: Inputs) -> Iterator[str]:
    """Yield the index that each round leaves if the gate accepts all rounds, and prompts without room."""
    index = DocumentIndex(settings=config.policy.retrieval or RetrievalConfig())
    for spec in config.rounds:
        if (change := inputs.index_changes.get(spec.name)) is not None:
            index, counts = index.changed(change, spec.name)
            total = counted(len(index.documents), "document")
            yield f"round {spec.name}: index of {total}: {counts.sentence}"
        if index.documents and spec.algorithm.trains_policy:
            for line in _reading_lines(spec.name, index, inputs):
                yield f"round {spec.name}: {line}"
        for line in _cramped_lines(spec, index if index.documents else None, config, inputs):
            yield f"round {spec.name}: {line}"


def _cramped_lines(
    spec: RoundConfig, index: DocumentIndex | None, config: CampaignConfig, inputs: Inputs
) -> Iterator[str]:
    """Yield a line on prompts of a round that acts, behind which an episode has no room."""
    if acts(spec):
        prompts = inputs.prompts.get(spec.name, ())
        yield from cramped_lines(config, spec, prompts, inputs.encoder_with(index), inputs.context)


def _reading_lines(name: str, index: DocumentIndex | None, inputs: Inputs) -> Iterator[str]:
    """Yield a line on prompts of a round that no document fits, and on those without room for all."""
    encoder, prompts = inputs.encoder_with(index), inputs.prompts.get(name, ())
    texts = sum(prompt.messages is None for prompt in prompts)
    if isinstance(encoder, SearchingEncoder) and texts:
        yield (
            f"{texts} of {len(prompts)} prompts are texts, which cannot call search; "
            "prompts: {chat: true} makes each a user's message"
        )
    if not isinstance(encoder, RetrievingEncoder) or not encoder.index.searchable:
        return
    without = sum(not encoder.documents_of(prompt) for prompt in prompts)
    crowded = sum(encoder.leaves_out(prompt) for prompt in prompts)
    if without:
        yield f"no document fits {without} of {len(prompts)} prompts"
    if crowded:
        yield (
            f"{crowded} of {len(prompts)} prompts are read behind fewer documents than fit them, since "
            f"{encoder.limit} tokens have no room for more; lower policy.retrieval.top_k, cut documents "
            "shorter, or raise rollouts.max_model_len"
        )
