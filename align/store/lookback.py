"""Rounds of a campaign that are a template's, as the ledger has it, and what a round sees of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from align.config.schedule import RememberConfig
from align.store.changes.gone import without_gone
from align.store.database.database import Database
from align.store.ledger.tables.due import due_claims
from align.store.recall import Template

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.gate.evidence import Evidence
    from align.round.inputs import Inputs


def nights_of(database: Database) -> dict[str, Template]:
    """Return the template of every round that is one's, in the order they fell due.

    What a template remembers is what the campaign file said when its last round fell due: an edit is for
    rounds to come, and an interrupted round goes on as it began.
    """
    with database.read() as connection:
        columns = (due_claims.c.schedule, due_claims.c.round, due_claims.c.spec)
        claims = connection.execute(select(*columns).order_by(due_claims.c.seq)).all()
    remember = {claim.schedule: json.loads(claim.spec).get("remember") for claim in claims}
    templates = {name: template_of(name, stated) for name, stated in remember.items()}
    # A schedule that does not repeat runs under its own name: a plain round.
    return {c.round: templates[c.schedule] for c in claims if c.round != c.schedule}


def template_of(name: str, stated: Any) -> Template:
    """Make a template; ``stated`` is what the round said of ``remember``, as a model or as JSON."""
    if stated == "all":
        return Template(name=name, remember=None)
    return Template(name=name, remember=RememberConfig.model_validate(stated or {}))


def templates_in(config: CampaignConfig) -> list[Template]:
    """List the templates of a campaign file as it was read."""
    return [template_of(spec.name, spec.remember) for spec in config.rounds if spec.repeats]


def upcoming(nights: Mapping[str, Template], decided: Collection[str]) -> list[str]:
    """List the round of every template that is decided on next, whether it fell due yet or not."""
    newest = {template.name: round for round, template in nights.items()}
    return [
        f"{name}-{int(last.rpartition('-')[2]) + 1}" if last in decided else last
        for name, last in newest.items()
    ]


def in_view(evidence: Evidence, rounds: Sequence[str]) -> CampaignConfig:
    """Return the campaign without what these rounds do not look at: rounds of templates that the gate
    leaves out, that were rejected, or whose turn is still to come; nor files of decided rounds that are
    gone."""
    config, nights = evidence.config, nights_of(evidence.ledger.database)
    names = {name for round in rounds for name in evidence.recall(round, "gate").kept}
    names |= {spec.name for spec in config.rounds if spec.name not in nights} | set(rounds)
    decided = [record.name for record in evidence.committed()]
    rounds_in_view = without_gone([s for s in config.rounds if s.name in names], decided)
    return config.model_copy(update={"rounds": rounds_in_view})


def only_of(inputs: Inputs, view: CampaignConfig) -> Inputs:
    """Return the inputs with the suites of the rounds in view, and with those of the campaign."""
    names = {None, *(spec.name for spec in view.rounds)}
    return replace(inputs, suites=[s for s in inputs.suites if s.target_of in names])
