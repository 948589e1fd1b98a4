"""``keel campaign``: records changes of a campaign file, and shows the recorded ones."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.arguments import AsJson, CampaignPath, Overrides, load, print_json
from rollouts.errors import UserError

campaign_app = typer.Typer(help="Amend a campaign that has begun.", no_args_is_help=True)


@campaign_app.command("amend")
def campaign_amend(
    campaign: CampaignPath,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written down.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write down what changed in a campaign's file since it began, with a reason; runs nothing.

    What committed verdicts rest on cannot change; the next keel run would write down the rest by itself,
    without a reason.
    """
    config = load(campaign, overrides).config
    from align.store.changes.amend import amend

    if not reason.strip():
        raise UserError("an amendment needs a reason", where="--reason")
    sentences = amend(config, reason=reason, dry_run=dry_run)
    if as_json:
        print_json({"recorded": not dry_run, "changes": sentences})
        return
    for sentence in sentences:
        typer.echo(f"{'would be amended' if dry_run else 'amended'}: {sentence}")
    if not sentences:
        typer.echo("nothing to amend: the store knows the campaign as the file has it")


@campaign_app.command("log")
def campaign_log(
    campaign: CampaignPath, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Show every amendment and every dropped round: who, when, what and why."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.store.ledger.amendments import amendments_of, drops_of

    ledger = stored_evidence(config).ledger
    amendments, drops = amendments_of(ledger), drops_of(ledger.database)
    if as_json:
        print_json({"amendments": amendments, "drops": drops})
        return
    lines = [(entry.time, entry.sentence) for entry in amendments]
    lines += [(entry.time, entry.sentence) for entry in drops]
    for _, sentence in sorted(lines):
        typer.echo(sentence)
    if not lines:
        typer.echo("nothing was amended")
