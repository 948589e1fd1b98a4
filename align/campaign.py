"""A campaign: its due rounds in order, each from what production is by then.

Whatever happened before is read from the ledger: a finished round is never run again, an interrupted
one starts over from its parent with the same seed, so a campaign that was killed ends where an
undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from align.config.campaign import CampaignConfig, RoundConfig
from align.gate.budgets import check_budgets
from align.gate.evidence import Evidence, in_view, view_of_due
from align.gate.overlap import save_overlaps
from align.gate.power.underpowered import check_power, foresee
from align.gate.sealed import any_due
from align.round.external.round import run_external_round
from align.round.inputs import Inputs, only_of
from align.round.measurement.damage import Damaged, survey
from align.round.measurement.measuring import measure_again, measure_known, open_sealed
from align.round.plan import RoundOutcome, RoundPlan
from align.round.planning import begun_round
from align.round.records.artifacts import check_artifacts, check_stored_artifacts
from align.round.records.named_rounds import check_stored_named_rounds
from align.round.records.retirement import remaining_suites, retire
from align.round.reward_round import run_reward_round
from align.round.round import run_round
from align.round.session import (
    Observer,
    Session,
    StartEngine,
    StoreClaim,
    claim_store,
    open_session,
)
from align.schedule.checked import load_checked, open_claims
from align.schedule.inbox.feed import fed, starved
from align.store.auto import auto_lines
from align.store.backups.ledger_backups import back_up
from align.store.changes.amend import dropped_lines
from align.store.changes.gone import gone_lines
from align.store.changes.settle import settle
from align.upkeep.collect import tidy
from rollouts.errors import LostRankError, system_errors

Runner = Callable[[RoundPlan, Session], RoundOutcome]
"""Makes the candidate of a round and puts it before the gate."""


def run_campaign(
    config: CampaignConfig, *, start_engine: StartEngine, observer: Observer
) -> Evidence:
    """Run every round that is not finished yet; return what is known of the campaign then.

    Rounds with a schedule are among them once they fell due, see `align.schedule`.

    Raises:
        UserError: the campaign, its inputs or its store cannot be used; nothing was changed.
        RunError: a round failed on the way; finished rounds stay as they are.
    """
    with system_errors(), open_campaign(config, observer.note) as campaign:
        if campaign.is_idle:
            observer.note("no round is due; nothing to run")
            campaign.claim.confirm_base()
            return campaign.evidence
        campaign.check_start(config)
        with open_session(
            campaign.claim, campaign.inputs, start_engine=start_engine, observer=observer
        ) as session:
            measure_again(session, campaign.damaged)
            for index, spec in campaign.due():
                session.inputs = campaign.inputs_of(spec)
                open_sealed(session)
                retire(index, spec, session)
                measure_known(session, spec.name)
                check_budgets(session.evidence, spec, session.suites(), observer.note)
                observer.on_verdict(*with_restarts(runner_of(spec), index, spec, session))
                tidy(campaign.evidence, observer.note, config.rounds)
                if failure := back_up(campaign.evidence.config):
                    observer.note(failure)
            open_sealed(session)
        return campaign.evidence


def with_restarts(
    run: Runner, index: int, spec: RoundConfig, session: Session
) -> tuple[RoundPlan, RoundOutcome]:
    """Run a round; where the learner loses a rank, start its ranks anew and go on from the checkpoint.

    Raises:
        LostRankError: it happened more often than ``policy.max_restarts`` allows.
        RunError: the round failed, or there was no room for the ranks within ``waits.ranks_start_s``.
    """
    for left in reversed(range(session.config.policy.max_restarts + 1)):
        try:
            with begun_round(index, spec, session) as plan:
                return plan, run(plan, session)
        except LostRankError as lost:
            if not left:
                raise
            session.observer.note(
                f"{spec.name}: {lost}; the ranks start anew ({left} restarts left)"
            )
            session.restart_learner()
    raise AssertionError("the last failure was raised")


def runner_of(spec: RoundConfig) -> Runner:
    """Return what makes the candidate of a round and puts it before the gate."""
    if spec.algorithm.makes == "reward_model":
        return run_reward_round
    return run_round if spec.algorithm.learns_here else run_external_round


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenCampaign:
    """Campaign that runs: its claimed store, the inputs of its rounds, and the rounds that are due."""

    claim: StoreClaim
    inputs: Inputs
    """Inputs of all rounds to come; a stream's rows are missing until its round begins."""
    note: Callable[[str], None]
    """Takes a line for a person."""
    damaged: Sequence[Damaged]
    """Stored results whose files were lost or changed, and which can be measured again."""
    rounds: Sequence[tuple[int, RoundConfig]]
    """Rounds that are due, each with its index in the ledger."""

    @property
    def evidence(self) -> Evidence:
        """Results and verdicts in the store, with the settings that the campaign runs by."""
        return self.claim.evidence

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to run and nothing to measure."""
        return not self.rounds and not self.damaged and not any_due(self.evidence)

    def check_start(self, stated: CampaignConfig) -> None:
        """Check what rounds go on from before engines start, and say which settings were chosen for them.

        Args:
            stated: settings as the campaign file has them.

        Raises:
            EvidenceError: an artifact of an earlier round is missing, or was changed.
        """
        check_artifacts([spec for _, spec in self.rounds], self.evidence)
        for line in auto_lines(stated, self.evidence.config):
            self.note(line)

    def due(self) -> Iterator[tuple[int, RoundConfig]]:
        """Yield the rounds that are still due when it is their turn."""
        config, ledger = self.evidence.config, self.evidence.ledger
        for index, spec in self.rounds:
            if spec.name in ledger.closed():
                self.note(f"{spec.name} was skipped meanwhile")
            elif not starved(config, ledger, spec, self.note):
                yield index, spec

    def inputs_of(self, spec: RoundConfig) -> Inputs:
        """Load the inputs that a round looks at, with the rows that it takes of the inbox.

        Raises:
            UserError: the round's stream has nothing for it, or its rows cannot be used.
        """
        view = in_view(self.evidence, [spec.name])
        return only_of(fed(self.inputs, view, self.evidence.ledger, spec), view)


@contextmanager
def open_campaign(stated: CampaignConfig, note: Callable[[str], None]) -> Iterator[OpenCampaign]:
    """Settle a campaign file with its store, load and check its inputs, and claim the store.

    Args:
        stated: settings as the campaign file has them.
        note: told what a person should know before anything runs.

    Raises:
        UserError: the campaign, its inputs or its store cannot be used; nothing was changed.
    """
    settled = settle(stated)
    settled.check()
    config, known = settled.config, settled.ledger
    view = view_of_due(config, known)
    if known is not None:
        check_stored_artifacts(view, known)
        check_stored_named_rounds(view, known)
    inputs = load_checked(view, open_claims(known))
    closed = frozenset() if known is None else known.closed()
    if any(spec.name not in closed for spec in config.rounds):
        suites = remaining_suites(view.rounds, inputs, known)
        for line in check_power(foresee(view, suites, known), config.gate):
            note(line)
    for line in dropped_lines(stated, known.database) if known else ():
        note(line)
    with claim_store(settled, inputs, note) as claim:
        ledger, evidence = claim.ledger, claim.evidence
        indices = {record.name: record.index for record in ledger.rounds() if not record.closed}
        decided = {record.name for record in evidence.committed()}
        state = survey(evidence, inputs, claim.folder_of)
        for line in (*gone_lines(config.rounds, decided), *state.lines()):
            note(line)
        due = [
            (indices[spec.name], spec)
            for spec in config.rounds
            if spec.name in indices and not starved(config, ledger, spec, note)
        ]
        save_overlaps(config.folder, [s.overlap for s in inputs.suites if s.overlap])
        yield OpenCampaign(
            claim=claim,
            inputs=inputs,
            note=note,
            damaged=state.measurable,
            rounds=due,
        )
