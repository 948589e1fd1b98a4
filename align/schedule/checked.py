"""The inputs of what is due, loaded and checked before it is claimed.

The settings of a round that fell due are those of that moment: an edit of the campaign file does not mend
it, and a message about the file would send people astray. So one that cannot be used is told by its name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from align.config.campaign import CampaignConfig
from align.gate.evidence import view_of_due
from align.round.inputs import Inputs, load_inputs
from align.schedule.claims import Dues
from align.schedule.due import Due
from align.store.changes.settle import settle
from align.store.ledger.due_rounds import ClaimedRound, open_claimed_rounds
from align.store.ledger.ledger import Ledger
from rollouts.errors import UserError
from rollouts.rows import FileRow


def check_due(config: CampaignConfig, ledger: Ledger, due: Sequence[Due]) -> None:
    """Raise an error if the campaign could not run with what is due now.

    Raises:
        UserError: the first thing that cannot be used.
    """
    settled = settle(config, ledger)
    settled.check()
    coming = Dues(ledger.database, config).would_be(due)
    rounds = (*settled.config.rounds, *coming)
    whole = settled.config.model_copy(update={"rounds": rounds})
    load_checked(view_of_due(whole, ledger), open_claims(ledger)).close()


def open_claims(ledger: Ledger | None, apart: Collection[str] = ()) -> list[ClaimedRound]:
    """List rounds that fell due and are not over, in order.

    Args:
        apart: names of rounds that are left out.
    """
    if ledger is None:
        return []
    return [
        claimed_round
        for claimed_round in open_claimed_rounds(ledger.database)
        if claimed_round.spec.name not in apart
    ]


def load_checked(
    config: CampaignConfig,
    claims: Sequence[ClaimedRound],
    rows: Mapping[str, Sequence[FileRow]] | None = None,
) -> Inputs:
    """Call `load_inputs`; if it fails, name the round to blame.

    Args:
        claims: rounds of the campaign that fell due before.

    Raises:
        UserError: the first thing that cannot be used. If the file's own rounds can all be used: of the
            first round in ``claims`` that cannot.
    """
    try:
        return load_inputs(config, rows)
    except UserError:
        names = {claim.spec.name for claim in claims}
        shown = {spec.name for spec in config.rounds} - names
        _load(config, shown, rows)
        for claim in claims:
            shown.add(claim.spec.name)
            try:
                _load(config, shown, rows)
            except UserError as error:
                raise _as_it_fell_due(claim, error) from error
        raise


def _load(
    config: CampaignConfig, names: Collection[str], rows: Mapping[str, Sequence[FileRow]] | None
) -> None:
    """Load the inputs of only these rounds."""
    rounds = tuple(spec for spec in config.rounds if spec.name in names)
    load_inputs(config.model_copy(update={"rounds": rounds}), rows).close()


def _as_it_fell_due(claim: ClaimedRound, error: UserError) -> UserError:
    mend = f"{error.remedy}; if" if error.remedy else "mend it; if"
    return UserError(
        error.what if error.where is None else f"{error.where}: {error.what}",
        where=f"round {claim.spec.name}, as it fell due {claim.claimed:%Y-%m-%d %H:%M} UTC",
        cause=error.cause,
        remedy=f"{mend} its settings are to blame, an edit of the file is for rounds to come, so pass this "
        f"one over: keel schedule skip CAMPAIGN {claim.spec.name}",
    )
