"""``keel gate``: what the gate can tell beforehand, why it decided, and the same decision again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launch.arguments import Address, AsJson, CampaignPath, Insecure, Overrides, load, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from align.gate.power.power import GatePlan

BaselineSnapshot = Annotated[
    str | None, typer.Argument(help="What budgets shall count from; an id or its first digits.")
]
BaselineReason = Annotated[
    str | None, typer.Option(help="Why; it is shown in every report from then on.")
]
RoundName = Annotated[str, typer.Argument(metavar="ROUND", help="Name of a finished round.")]

gate_app = typer.Typer(help="Plan and look at verdicts.", no_args_is_help=True)


@gate_app.command("plan")
def plan(
    campaign: CampaignPath,
    overrides: Overrides = None,
    discordance: Annotated[
        float | None,
        typer.Option(help="Share of items assumed to change where nothing was measured."),
    ] = None,
    loss: Annotated[
        float,
        typer.Option(
            help="True loss of the candidate, such as 0.01 for a point, that chances are for.",
            min=0.0,
        ),
    ] = 0.0,
    price: Annotated[
        float | None, typer.Option(help="Dollars per million tokens, to tell costs by.", min=0.0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each suite can tell: margins, items, power, cost. Works before the first run, and for a
    file of suites for keel judge."""
    from align.judge.suites_file import campaign_or_suites

    config, notes = campaign_or_suites(campaign, overrides or ())
    from align.gate.evidence import stored_evidence
    from align.gate.power.power import plan_gate
    from align.store.changes.settle import as_begun
    from align.store.store import begun_ledger

    for note in notes:
        typer.echo(f"note: {note}", err=True)
    ledger = begun_ledger(config) if config.rounds else None
    if ledger is not None:
        config = as_begun(config, ledger)
    evidence = None if ledger is None else stored_evidence(config)
    planned = plan_gate(config, evidence, discordance, loss=loss)
    if as_json:
        print_json(planned)
        return
    from align.report.tables import report_console

    report_console().print(_plan_table(planned))
    typer.echo("\n".join(_plan_notes(planned, price)))


@gate_app.command("explain")
def explain(
    campaign: CampaignPath,
    round_name: RoundName,
    overrides: Overrides = None,
    items: Annotated[
        int, typer.Option(help="Most items shown as lost, and as won, of a suite.", min=0)
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Say in plain sentences why a round was accepted or not, and what would have changed it."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.report.explanation.explain import explain as explained

    explanation = explained(stored_evidence(config), round_name)
    if as_json:
        print_json(explanation)
    else:
        typer.echo("\n".join(explanation.lines(items)))


@gate_app.command("recompute")
def recompute(
    campaign: CampaignPath,
    round_name: RoundName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a verdict again from the stored items and compare it with the ledger's."""
    config = load(campaign, overrides).config
    from align.gate.evidence import stored_evidence
    from align.round.measurement.damage import evidence_notes

    evidence = stored_evidence(config)
    again, recorded = evidence.recompute(round_name)
    same = again.decides_as(recorded)
    notes = list(evidence_notes(evidence, recorded))
    if as_json:
        verdict = {"round": round_name, "identical": same, "verdict": again.to_dict()}
        print_json({**verdict, "notes": notes})
    else:
        for line in (*again.reasons, *notes):
            typer.echo(f"  {line}")
        typer.echo(
            f"{round_name}: {again.outcome}; {'identical to' if same else 'DIFFERS from'} the ledger"
        )
    if not same:
        raise typer.Exit(1)


@gate_app.command("aa")
def aa(
    campaign: CampaignPath,
    overrides: Overrides = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Only this suite. Repeatable; without it, all.")
    ] = None,
    address: Address = None,
    insecure_cluster: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Measure production twice: what differs is noise, and a floor for keel gate plan."""
    config = load(campaign, overrides).config
    from rich.console import Console

    from align.gate.statistics.noise import noise_lines
    from align.report.forecast.machine import check_machine
    from align.report.progress import LiveProgress
    from align.round.measurement.aa_run import measure_noise
    from launch.cluster.engines import engine_starter

    check_machine(config, address)
    with (
        LiveProgress(Console(stderr=True)) as progress,
        engine_starter(address, progress, insecure=insecure_cluster) as start_engine,
    ):
        floors = measure_noise(config, suite or (), start_engine=start_engine, observer=progress)
    if as_json:
        print_json(floors)
    else:
        typer.echo("\n".join(noise_lines(floors)))


@gate_app.command("baseline")
def baseline(
    campaign: CampaignPath,
    snapshot: BaselineSnapshot = None,
    reason: BaselineReason = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Move the baseline that total budgets count from; without SNAPSHOT, show its log."""
    config = load(campaign, overrides).config
    from align.gate.baseline import baseline_lines, choose_baseline
    from align.gate.evidence import stored_evidence
    from align.store.ledger.baseline import baseline_moves

    evidence = stored_evidence(config)
    if snapshot is not None:
        choose_baseline(evidence, snapshot, reason or "")
    if as_json:
        print_json({"start": evidence.base, "moves": baseline_moves(evidence.ledger)})
    else:
        typer.echo("\n".join(baseline_lines(evidence)))


@gate_app.command("anchor", hidden=True)
def anchor(
    campaign: CampaignPath,
    snapshot: BaselineSnapshot = None,
    reason: BaselineReason = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run keel gate baseline by its old name."""
    typer.echo(
        "note: keel gate anchor is keel gate baseline now; the next version has no other name for it",
        err=True,
    )
    baseline(campaign, snapshot, reason, overrides, as_json)


def _cost(tokens: int, is_complete: bool, price: float | None) -> str:
    dollars = "" if price is None else f" (${tokens * price / 1e6:,.2f})"
    return f"{tokens:,}{'' if is_complete else ' and more'} tokens{dollars}"


def stopping_lines(planned: GatePlan) -> list[str]:
    """Return a line on every suite that may stop early: the items that are expected to be measured."""
    return [
        f"{suite.suite} stops after about {suite.expected:,} of {suite.n:,} items, and is looked at up to "
        f"{suite.looks} times"
        for suite in planned.suites
        if suite.expected < suite.n
    ]


def _plan_table(planned: GatePlan) -> Table:
    from rich.table import Table

    table = Table(title=f"What the gate can tell of {_whom(planned)}", title_justify="left")
    table.add_column("suite")
    for column in (
        "items", "change", "margin", "shown .8", "shown .95", "items .8", "items .95", "power",
        "all checks", "items for all", "tokens", "s",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for suite in planned.suites:
        spread, whole = suite.spread, suite.spread.pass_fail
        change = f"{100 * spread.variance:.1f}%" if whole else f"sd {spread.variance**0.5:.3g}"
        margins = (suite.margin, *suite.testable.values())
        table.add_row(
            suite.suite if suite.role == "gate" else f"{suite.suite} ({suite.role})",
            f"{suite.n:,}",
            change if spread.source == "rounds" else f"{change} {spread.source}",
            *(f"{100 * margin:.1f}%" if whole else f"{margin:.3g}" for margin in margins),
            *(f"{needed:,}" for needed in suite.needed.values()),
            f"{suite.power:.2f}",
            f"{suite.joint:.2f}",
            f"{suite.enough:,}" if suite.guards else "-",
            "?" if suite.tokens is None else f"{suite.tokens:,}",
            "?" if suite.seconds is None else f"{suite.seconds:.1f}",
        )
    return table


def cost_sentence(planned: GatePlan, price: float | None) -> str:
    """Say what a candidate costs to measure: the most, and what is expected where suites may stop early."""
    most = f"a candidate costs at most {_cost(*planned.tokens(whole=True), price)}"
    stopping = [suite for suite in planned.suites if suite.expected < suite.n]
    if not stopping:
        return most
    looks = max(suite.looks for suite in stopping)
    return (
        f"an equal candidate is expected to cost {_cost(*planned.tokens(), price)}; {most}, in up to "
        f"{looks} looks (gate.max_looks); in each, engines load the weights of the candidate and of every "
        "snapshot that it is not decided against at most once, and measure these as far as it needs"
    )


def _whom(planned: GatePlan) -> str:
    return f"a candidate that lost {planned.loss:g}" if planned.loss else "an equal candidate"


def _plan_notes(planned: GatePlan, price: float | None) -> list[str]:
    from align.gate.power.underpowered import NOTHING_TO_LOSE

    measured = max((suite.spread.rounds for suite in planned.suites), default=0)
    took = f", {planned.seconds:.0f} s until now" if planned.seconds is not None else ""
    return [
        "shown: smallest margin these items show at that power; items: as many as the margin asks for",
        "all checks: the chance against parent, best and start together, rates of cut answers included; "
        f"items for all: with so many in every suite all pass together with a chance of {planned.wanted:g}",
        *(f"an equal candidate: {line}" for line in stopping_lines(planned)),
        planned.spending,
        *(template.sentence for template in planned.templates),
        *(
            f"{name} {lookback.sentence}"
            for name, lookback in planned.recalls.items()
            if lookback.left_out
        ),
        f"{_whom(planned)} in the last round passes every suite with a chance of "
        f"{planned.all_pass:.2f}, were they independent"
        if any(suite.guards for suite in planned.suites)
        else NOTHING_TO_LOSE,
        f"{cost_sentence(planned, price)}{took}; with the items for all, "
        f"{_cost(*planned.tokens(enough=True), price)}",
        f"change: of candidates against their parents in {measured} decided rounds"
        if measured
        else "change: assumed, no round was decided yet; --discordance says otherwise, keel gate aa "
        "measures the noise below it",
    ]
