"""Measurement of production twice, kept for planning: ``keel gate aa``."""

from __future__ import annotations

from collections.abc import Sequence

from align.config.campaign import CampaignConfig
from align.gate.evidence import view_of_due
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.statistics.noise import NoiseFloor, noise_floor, save_repeats
from align.gate.suites.suite import Suite
from align.round.inputs import load_inputs
from align.round.measurement.measuring import make_needed, teller
from align.round.session import Observer, StartEngine, claim_store, open_session, seed_of
from align.store.changes.settle import settle
from rollouts.errors import UserError, nearest


def measure_noise(
    config: CampaignConfig,
    names: Sequence[str],
    *,
    start_engine: StartEngine,
    observer: Observer,
) -> list[NoiseFloor]:
    """Evaluate production twice with different seeds; what differs is noise.

    Where the temperature is 0 the seeds do nothing, and the engines' own noise is left. No verdict reads
    these results.

    Args:
        names: of suites; none stands for all.

    Raises:
        UserError: the campaign cannot be used, or there is no such suite.
    """
    settled = settle(config)
    settled.check()
    config = settled.config
    inputs = load_inputs(view_of_due(config, settled.ledger))
    with (
        claim_store(settled, inputs, observer.note) as claim,
        open_session(claim, inputs, start_engine=start_engine, observer=observer) as session,
    ):
        suites = _chosen(session.suites(), names)
        make_needed(session, suites)
        production = session.ledger.alias("production") or session.base
        session.hold(production, "production")

        def measured(run: int) -> dict[str, ItemResults]:
            observer.note(f"measuring {production[:16]}, run {run} of 2")
            claim.beat()
            seed = seed_of(config.seed, f"aa/{run}")
            tell = teller(session, f"run {run}")
            return evaluate(
                session.engine, suites, session.encoder, production, seed=seed, tell=tell
            )

        first, second = measured(1), measured(2)
        for suite in suites:
            paths = save_repeats(session.store.paths, first[suite.name], second[suite.name])
            session.store.files.record(paths)
        return [noise_floor(first[s.name], second[s.name], s.scale) for s in suites]


def _chosen(suites: Sequence[Suite], names: Sequence[str]) -> list[Suite]:
    known = {suite.name: suite for suite in suites}
    for name in names:
        if name not in known:
            raise UserError(
                f"there is no suite {name!r} that production can be measured on",
                where="--suite",
                remedy=nearest(name, list(known)),
            )
    return [known[name] for name in names] if names else list(suites)
