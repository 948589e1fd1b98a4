"""Rows of the inbox that a round reads: taken when it begins, the same for every attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from align.config.campaign import CampaignConfig, RoundConfig
from align.data.examples.holdout import place
from align.gate.suites.sequences import MIN_ITEMS
from align.round.inputs import Inputs
from align.schedule.checked import load_checked, open_claims
from align.schedule.claims import pass_over
from align.schedule.inbox.drop import sweep
from align.schedule.inbox.inbox import Inbox
from align.schedule.inbox.rows import StreamForm, stream_forms
from align.store.ledger.campaign_row import INTERRUPTED
from align.store.ledger.ledger import Ledger
from align.store.paths import StorePaths
from rollouts.errors import UserError
from rollouts.prompts import content_id
from rollouts.rows import FileRow


def fed(inputs: Inputs, config: CampaignConfig, ledger: Ledger, spec: RoundConfig) -> Inputs:
    """Return the inputs with the rows that this round takes, and those that earlier rounds took.

    Earlier rounds' rows are read again because their held-out part is a suite: what those rounds taught is
    still measured, unless a purge has left too little of it. A campaign whose rounds read no stream keeps
    its inputs as they are.

    Raises:
        UserError: the round's stream has nothing for it, or its rows cannot be used.
    """
    forms = stream_forms(config)
    if not forms:
        return inputs
    inbox = Inbox(ledger.database)
    reservation = None
    if spec.data is not None and spec.data.stream is not None:
        sweep(StorePaths(config.folder).inbox.folder, inbox, forms)
        reservation = inbox.reserve(
            spec.name,
            spec.data.stream,
            use=spec.data.use,
            limit=spec.data.limit,
            after_rejection=spec.data.after_rejection,
        )
        if reservation is None:
            raise UserError(
                f"{spec.data.source} has nothing new for round {spec.name!r}",
                where=str(StorePaths(config.folder).inbox.folder),
                remedy="send pairs with keel feedback add, keel feedback serve or the drop folder, and run "
                "again",
            )
    shown = {earlier.name for earlier in config.rounds}
    decided = [r for r in inbox.reservations() if r.state != "held" and r.round in shown]
    rows_of = {reservation.round: inbox.read(reservation) for reservation in decided}
    before = {
        earlier.name: rows_of[earlier.name]
        for earlier in config.rounds
        if earlier.name in rows_of and _measurable(earlier, forms, rows_of[earlier.name])
    }
    own_rows = {} if reservation is None else {spec.name: inbox.read(reservation)}
    own_claims = [claim for claim in open_claims(ledger) if claim.spec.name == spec.name]
    return load_checked(config, own_claims, before | own_rows)


def starved(
    config: CampaignConfig, ledger: Ledger, spec: RoundConfig, note: Callable[[str], None]
) -> bool:
    """Tell if a round that fell due does not run: its rows were removed, or another round has used
    them.

    An attempt that was under way has failed. A template's round is over, and the next one falls due as its
    schedule says; one that does not repeat waits for more rows.
    """
    if spec.data is None or spec.data.stream is None:
        return False
    claim = next((each for each in open_claims(ledger) if each.spec.name == spec.name), None)
    if claim is None:
        return False
    inbox = Inbox(ledger.database)
    sweep(StorePaths(config.folder).inbox.folder, inbox, stream_forms(config))
    again = spec.data.use != "once"
    if inbox.waiting(spec.data.stream, above=0 if again else None).count:
        return False
    for record in ledger.rounds():
        if record.name == spec.name and record.state in ("running", "gating"):
            ledger.commit_round(record.index, record.attempt, "failed", None, INTERRUPTED)
    with ledger.database.write() as connection:
        over = pass_over(connection, claim.schedule, claim.key, spec.name, datetime.now(UTC))
    what = "is skipped" if over else "waits for more"
    note(f"{spec.name} {what}: nothing is left in {spec.data.source} for it")
    return True


def _measurable(
    spec: RoundConfig, forms: Mapping[str, StreamForm], rows: Sequence[FileRow]
) -> bool:
    """Tell if a finished round still has what it is measured on: a purge may have removed too much."""
    assert spec.data is not None and spec.data.stream is not None
    if spec.suite.prompts is not None:
        return True
    form = forms[spec.data.stream]
    prompts = (example.prompt for row in rows for example in form.examples(row.values))
    return sum(place(content_id(prompt)) < spec.data.heldout for prompt in prompts) >= MIN_ITEMS
