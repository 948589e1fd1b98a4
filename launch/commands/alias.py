"""``keel rollback`` and ``keel promote``: move production by hand, on the record."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json

To = Annotated[
    str, typer.Option("--to", metavar="SNAPSHOT", help="An accepted round, or its snapshot's id.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the log.")]


def add_commands(app: typer.Typer) -> None:
    """Add both to a command line."""
    app.command("rollback")(rollback)
    app.command("promote")(promote)


def rollback(
    campaign: CampaignPath,
    to: To,
    reason: Reason,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Take production back to an earlier accepted snapshot; rounds after it no longer count."""
    _move(campaign, overrides, to, reason, back=True, as_json=as_json)


def promote(
    campaign: CampaignPath,
    to: To,
    reason: Reason,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Take production to another accepted snapshot that it was rolled back from."""
    _move(campaign, overrides, to, reason, back=False, as_json=as_json)


def _move(
    campaign: CampaignPath,
    overrides: Overrides,
    to: str,
    reason: str,
    *,
    back: bool,
    as_json: bool,
) -> None:
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.store.ledger.lineage import move_production

    evidence = stored_evidence(config)
    move_production(evidence.ledger, to, back=back, reason=reason)
    move = evidence.ledger.alias_moves()[-1]
    if as_json:
        print_json(move)
        return
    counted = ", ".join(evidence.accepted("policy")) or "none"
    typer.echo(f"production: {(move.previous or '')[:16]} -> {move.target[:16]} ({move.reason})")
    typer.echo(f"accepted rounds that count: {counted}")
