"""Comparison of two models on a file of suites, by the gate's own suites, pairing and statistics.

    open the models -> load the suites for each -> measure the incumbent -> the candidate -> decide

All that can be wrong with the input is told before an engine starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from align.gate.case import NO_TARGET, Case
from align.gate.measurement.evaluate import ItemResults, evaluate
from align.gate.measurement.progress import SuiteProgress, Tell
from align.gate.power.power import GatePlan, plan_gate
from align.gate.power.underpowered import check_power
from align.gate.suites.known import KnownSnapshots, compared
from align.gate.suites.suites import Suite
from align.gate.verdict import decide
from align.judge.cache import measurements_of
from align.judge.judgement import Judgement, ModelRecord
from align.judge.models import JudgedModel
from align.judge.suites_file import SuitesFile
from align.round.reward_models import measurable
from align.round.session import MeasuringObserver, Observer, StartEngine
from align.store.paths import StorePaths
from rollouts.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeCase:
    """A candidate, an incumbent, and the suites of each as its own tokenizer reads them."""

    file: SuitesFile
    candidate: JudgedModel
    incumbent: JudgedModel
    candidate_suites: Sequence[Suite]
    incumbent_suites: Sequence[Suite]
    target: str | None = None
    """Suite on which the candidate has to be better; None: it only must not lose."""
    root: Path
    """Folder of measurements."""
    planned: GatePlan
    """Power of the suites, at the assumed change."""
    notes: tuple[str, ...] = field(default=())
    """Remarks for the user."""

    def power_lines(self) -> Iterator[str]:
        """Yield what the suites can tell, then the chance of an equal candidate to be accepted."""
        yield f"gate: {self.planned.spending}"
        for suite in self.planned.suites:
            role = "" if suite.role == "gate" else f" ({suite.role})"
            margin = (
                f"{100 * suite.margin:g} points" if suite.spread.pass_fail else f"{suite.margin:g}"
            )
            yield f"  {suite.suite}{role}: {suite.n:,} items, margin {margin}, power {suite.joint:.2f}"
        yield f"  an equal candidate is accepted with a chance of {self.planned.all_pass:.2f}"

    def close(self) -> None:
        """End the worker processes of the metrics."""
        for suite in (*self.candidate_suites, *self.incumbent_suites):
            suite.close()


@contextmanager
def opened_case(
    file: SuitesFile,
    candidate: JudgedModel,
    incumbent: JudgedModel,
    *,
    root: Path,
    target: str | None = None,
) -> Iterator[JudgeCase]:
    """Load the suites for both models and check that these can be compared on them.

    Args:
        root: folder of measurements; it may not exist yet.
        target: suite on which the candidate has to be better.

    Raises:
        UserError: a suite cannot be loaded, or the models cannot be compared on it.
    """
    known = [suite.name for suite in file.suites if suite.role == "gate"]
    if target is not None and target not in known:
        raise UserError(
            f"there is no suite {target!r} that decides",
            where="--target",
            remedy=nearest(target, known),
        )
    with TemporaryDirectory(prefix="keel-judge-") as scratch:
        is_cached = incumbent.settings is not None
        answers = (
            measurements_of(root, incumbent).folder if is_cached else Path(scratch)
        ).absolute()
        candidate_suites, left_out = _loaded(candidate, incumbent, answers, target)
        incumbent_suites, _ = _loaded(incumbent, incumbent, answers, target)
        case = JudgeCase(
            file=file,
            candidate=candidate,
            incumbent=incumbent,
            candidate_suites=candidate_suites,
            incumbent_suites=incumbent_suites,
            target=target,
            root=root,
            planned=plan_gate(file.campaign(file.policy), None, suites=candidate_suites),
            notes=(
                *file.notes,
                *candidate.notes,
                *incumbent.notes,
                *(f"suite {name!r} is left out: {why}" for name, why in file.left_out.items()),
                *left_out,
            ),
        )
        try:
            _check_paired(case)
            yield case
        finally:
            case.close()


def judge(case: JudgeCase, *, start_engine: StartEngine, observer: Observer) -> Judgement:
    """Measure both models, the incumbent only where that is not on record, and decide.

    Raises:
        RunError: a model could not be measured.
    """
    observer.note(f"measuring {case.incumbent.name}, the incumbent")
    before, reused = _measured(case.incumbent, case.incumbent_suites, case, start_engine, observer)
    observer.note(f"measuring {case.candidate.name}, the candidate")
    after, known = _measured(case.candidate, case.candidate_suites, case, start_engine, observer)
    verdict = decide(
        Case(
            target=case.target or NO_TARGET,
            candidate=after,
            parent=before,
            suites=tuple(suite.rule for suite in case.candidate_suites),
            gate=case.file.gate,
            accepted_rounds=(),
        )
    )
    return Judgement(
        candidate=ModelRecord(name=case.candidate.name, id=case.candidate.id, reused=known),
        incumbent=ModelRecord(name=case.incumbent.name, id=case.incumbent.id, reused=reused),
        verdict=verdict,
        candidate_results=after,
        incumbent_results=before,
        chance=case.planned.all_pass,
        notes=case.notes,
    )


def power_warnings(case: JudgeCase) -> list[str]:
    """Return warnings for suites whose items cannot show what is asked of them.

    Raises:
        UserError: there are some, and the file says ``underpowered: refuse``.
    """
    return check_power(case.planned, case.file.gate)


def _loaded(
    model: JudgedModel, incumbent: JudgedModel, answers: Path, target: str | None
) -> tuple[list[Suite], list[str]]:
    """Load a model's suites, comparable with those of another model, and say what is left out."""
    suites = model.suites()
    known = measurable(suites, {}, lambda snapshot: Path(snapshot))
    names = {suite.name for suite in known}
    left_out = [
        f"suite {suite.name!r} is left out: its metric is a reward model of a campaign"
        for suite in suites
        if suite.name not in names
    ]
    rival = KnownSnapshots(base=incumbent.id, production=incumbent.id, store=StorePaths(answers))
    # Two models share a suite's hash if they are asked the same: tokenizer and precision belong to the
    # model here, and its id and its engine settings name them.
    comparable = [
        replace(s, encoding=None, engine={}, target_of=target if s.name == target else None)
        for s in compared(known, rival)
    ]
    return comparable, left_out


def _check_paired(case: JudgeCase) -> None:
    """Refuse suites that the two models read differently."""
    if not case.candidate_suites:
        raise UserError("no suite is left to measure", where="--suites")
    for suite, other in zip(case.candidate_suites, case.incumbent_suites, strict=True):
        if suite.hash == other.hash:
            continue
        raise UserError(
            f"{case.candidate.name} and {case.incumbent.name} cut the items of suite {suite.name!r} into "
            "different tokens, so their log-likelihoods per token cannot be compared",
            where=f"suite {suite.name!r}",
            cause="their tokenizers differ",
            remedy="remove the suite, or replace it by one that samples answers",
        )


def _measured(
    model: JudgedModel,
    suites: Sequence[Suite],
    case: JudgeCase,
    start_engine: StartEngine,
    observer: Observer,
) -> tuple[dict[str, ItemResults], tuple[str, ...]]:
    """Return a model's results by suite, and the names of suites whose results were on record."""
    cache = measurements_of(case.root, model) if model.settings is not None else None
    results = {s.name: stored for s in suites if cache and (stored := cache.load(s)) is not None}
    reused = tuple(results)
    if reused:
        observer.note(f"{model.name}: on record for {', '.join(reused)}")
    missing = [suite for suite in suites if suite.name not in results]
    unmade = [
        (suite, needed)
        for suite in suites
        for needed in suite.needs
        if model is case.incumbent and not needed.path.exists()
    ]
    if missing or unmade:
        with model.serve(start_engine) as engine:
            for suite, needed in unmade:
                needed.write(engine, model.encoder_of(suite), case.file.seed)
            for number, suite in enumerate(missing, start=1):
                tell = _teller(model.name, number, len(missing), observer)
                encoder = model.encoder_of(suite)
                measured = evaluate(engine, [suite], encoder, model.id, case.file.seed, tell)
                results[suite.name] = measured[suite.name]
                if cache is not None:
                    cache.save(suite, measured[suite.name])
    return {suite.name: results[suite.name] for suite in suites}, reused


def _teller(name: str, number: int, total: int, observer: Observer) -> Tell:
    """Return a listener that tells the observer of one suite of several."""

    def tell(progress: SuiteProgress) -> None:
        if isinstance(observer, MeasuringObserver):
            observer.on_measuring(name, replace(progress, number=number, suites=total))

    return tell
