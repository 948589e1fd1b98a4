"""Measures one snapshot on every suite: one value per item, kept so that any verdict can be redone.

The engine already holds the snapshot's weights. An item without a value (a failed rollout, a failed
or abstaining metric) counts as the worst and is counted; dropping it would hide a regression.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from align.gate.measurement.progress import CountedEngine, SuiteMeter, Tell
from align.gate.measurement.samples import ItemScore, checked, merged
from align.gate.suites.implicit import preferred, wins
from align.gate.suites.suites import Suite, rendered
from align.store.durable import sync
from rollouts.engines.protocol import KnownEngine, RolloutEngine, ScoreRequest
from rollouts.errors import RunError
from rollouts.types import FinishReason, Score, SnapshotId

if TYPE_CHECKING:
    from rollouts.prompts import PromptEncoder

ItemStatus = Literal["scored", "abstained", "failed"]

_METADATA = b"keel.item_results"
LONGER = "the longer answer"
LIKELIHOOD = "the higher likelihood per token"
"""Rules that pairs are also judged by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemResults:
    """What one snapshot got on one suite, item by item. Higher values are better."""

    suite: str
    suite_hash: str
    snapshot: SnapshotId
    item_ids: tuple[str, ...]
    values: tuple[float, ...]
    """Reward units, or nats per token; finite. The worst value where the status is not scored."""
    statuses: tuple[ItemStatus, ...]
    finishes: tuple[FinishReason, ...]
    """``length`` where the completion was cut; always ``stop`` for likelihood."""
    prompts: tuple[str, ...] = field(default=(), compare=False, repr=False)
    answers: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Texts for people to look at, where completions were sampled; no verdict reads them."""
    clusters: tuple[str, ...] = ()
    """What items have in common, such as a source; empty: every item counts by itself."""
    tokens: int | None = field(default=None, compare=False)
    """Generated, or scored; None where it was not counted. ``seconds``: how long that took."""
    seconds: float | None = field(default=None, compare=False)
    measured_by: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Version of ``vllm`` and kind of ``device``; empty where that was not recorded."""
    beside: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Shares of a suite's pairs that other rules are right about; no verdict reads them."""

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.values), len(self.statuses), len(self.finishes)}
        if lengths != {len(set(self.item_ids))} or 0 in lengths:
            raise ValueError(f"results of {self.suite!r} need one value per distinct item")
        if len(self.clusters) not in (0, len(self.values)):
            raise ValueError(f"results of {self.suite!r} need one cluster per item, or none")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"results of {self.suite!r} hold a value that is not finite")

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def beside_line(self) -> str:
        """The shares of `beside` as a sentence; empty if there are none."""
        if not self.beside:
            return ""
        rules = [f"{name} is right about {100 * share:.1f}%" for name, share in self.beside.items()]
        return f"right about {100 * self.mean:.1f}% of {len(self.values)} pairs; {', '.join(rules)}"

    @property
    def failed(self) -> int:
        """Items whose rollout or metric failed."""
        return self.statuses.count("failed")

    @property
    def truncated(self) -> int:
        """Items whose completion was cut at max_tokens."""
        return self.finishes.count("length")

    @property
    def is_pass_fail(self) -> bool:
        return all(value in (0.0, 1.0) for value in self.values)

    def save(self, path: str | Path) -> None:
        """Write parquet; the file is there whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        header = {
            "suite": self.suite,
            "suite_hash": self.suite_hash,
            "snapshot": self.snapshot,
            "tokens": self.tokens,
            "seconds": self.seconds,
            **({"measured_by": dict(self.measured_by)} if self.measured_by else {}),
            **({"beside": dict(self.beside)} if self.beside else {}),
        }
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, pa.string()),
                "value": pa.array(self.values, pa.float64()),
                "status": pa.array(self.statuses, pa.string()),
                "finish": pa.array(self.finishes, pa.string()),
                **{
                    name: pa.array(texts, pa.string())
                    for name, texts in (
                        ("prompt", self.prompts),
                        ("answer", self.answers),
                        ("cluster", self.clusters),
                    )
                    if texts
                },
            }
        ).replace_schema_metadata({_METADATA: json.dumps(header, sort_keys=True).encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, staging)
            sync(staging)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
        sync(path.parent)

    @classmethod
    def load(cls, path: str | Path) -> ItemResults:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, damaged or not one of ours.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(path).read()
            header = json.loads((table.schema.metadata or {})[_METADATA])
            columns = table.to_pydict()
            return cls(
                suite=header["suite"],
                suite_hash=header["suite_hash"],
                snapshot=header["snapshot"],
                item_ids=tuple(columns["item_id"]),
                values=tuple(columns["value"]),
                statuses=tuple(columns["status"]),
                finishes=tuple(columns["finish"]),
                clusters=tuple(columns.get("cluster", ())),
                tokens=header.get("tokens"),
                seconds=header.get("seconds"),
                measured_by=header.get("measured_by", {}),
                beside=header.get("beside", {}),
            )
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise RunError(
                f"evaluation results cannot be read: {error}",
                where=str(path),
                remedy="restore it from a backup, or delete it: keel run CAMPAIGN measures it again",
            ) from error


def measured_seconds(path: Path) -> float | None:
    """Return the seconds that a suite took, of a file that `ItemResults.save` wrote.

    None: the file is missing, damaged, or older than this note. Only its header is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        seconds = json.loads((pq.read_schema(path).metadata or {})[_METADATA]).get("seconds")
        return None if seconds is None else float(seconds)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException):
        return None


def evaluate(
    engine: RolloutEngine,
    suites: Iterable[Suite],
    encoder: PromptEncoder,
    snapshot_id: SnapshotId,
    seed: int,
    tell: Tell = lambda _: None,
) -> dict[str, ItemResults]:
    """Results of every suite by name, under the weights the engine holds.

    Args:
        seed: fixes every item's sampling; use one for the whole campaign, so that items are paired.
        tell: told of progress, many times a suite.

    Raises:
        RunError: no item of a whole suite has a value, or one is outside the metric's range.
    """
    results_by_suite, suites = {}, list(suites)
    about = engine.about() if suites and isinstance(engine, KnownEngine) else {}
    for number, suite in enumerate(suites, start=1):
        began = time.monotonic()
        meter = SuiteMeter(
            suite=suite.name,
            number=number,
            suites=len(suites),
            items=len(suite.item_ids),
            tell=tell,
        )
        counted = CountedEngine(engine, meter)
        if suite.harness is not None:
            measured = suite.harness.measure(counted, encoder, seed, suite.value_range)
            results = _results(suite, snapshot_id, *measured)
        elif suite.kind == "items":
            results = _evaluate_items(counted, suite, encoder, snapshot_id, seed)
        else:
            results = _evaluate_sequences(counted, suite, snapshot_id)
        meter.finish()
        results_by_suite[suite.name] = replace(
            results, seconds=time.monotonic() - began, measured_by=about
        )
    return results_by_suite


def paired(
    candidate: ItemResults, comparator: ItemResults
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both value rows in the candidate's item order.

    Raises:
        RunError: the two were not measured on the same suite and items.
    """
    before = dict(zip(comparator.item_ids, comparator.values, strict=True))
    if candidate.suite_hash != comparator.suite_hash or before.keys() != set(candidate.item_ids):
        raise RunError(
            f"suite {candidate.suite!r} was measured on different items for {candidate.snapshot} "
            f"and {comparator.snapshot}",
            cause="the suite changed between the two evaluations",
            remedy="evaluate both snapshots on the suite as it is now",
        )
    return candidate.values, tuple(before[item] for item in candidate.item_ids)


def _evaluate_items(
    engine: RolloutEngine, suite: Suite, encoder: PromptEncoder, snapshot: SnapshotId, seed: int
) -> ItemResults:
    from rollouts.collect import collect

    if suite.rubric is None or suite.sampling is None:
        raise ValueError(f"suite {suite.name!r} has no rubric or no sampling")
    groups = collect(
        engine,
        suite.prompts,
        [suite.samples] * len(suite.prompts),
        encoder,
        suite.sampling,
        seed=seed,
        policy=snapshot,
        positions=suite.positions,
    )
    try:
        scores = merged(suite.score(groups), suite.value_range)
    except ValueError as error:
        raise RunError(
            f"a value of the metric cannot be right: {error}",
            where=f"suite {suite.name!r}",
            cause="the metric has a fault, or the suite's range is not the metric's",
            remedy="correct the metric, or state the range of its values in the suite",
        ) from error
    tokens = sum(len(c.token_ids) for group in groups for c in group.completions_G)
    return _results(suite, snapshot, scores, tokens)


def _evaluate_sequences(engine: RolloutEngine, suite: Suite, snapshot: SnapshotId) -> ItemResults:
    """Mean logprob per token of every answer, or of every pair whether the better one has more.

    Pairs of a round whose loss has a reference go by their log ratios to it.
    """
    sums = sequence_logprobs(engine, suite)
    lengths = [len(completion_ids) for _, completion_ids in suite.sequences]
    values = [total / length for total, length in zip(sums, lengths, strict=True)]
    beside: dict[str, float] = {}
    if suite.kind == "pairs":
        raw = [float(a > b) for a, b in zip(values[::2], values[1::2], strict=True)]
        longer = wins([float(length) for length in lengths])
        values = preferred(sums, suite, snapshot) if suite.implicit else raw
        beside = {LONGER: math.fsum(longer) / len(longer)}
        if suite.implicit:
            beside[LIKELIHOOD] = math.fsum(raw) / len(raw)
    scores = [checked(Score(value=value, status="scored"), None) for value in values]
    return replace(_results(suite, snapshot, scores, sum(lengths)), beside=beside)


def sequence_logprobs(engine: RolloutEngine, suite: Suite) -> list[float]:
    """Return the log-likelihood of every given answer under the engine's weights, in nats."""
    requests = [ScoreRequest(prompt_ids=p, completion_ids=c) for p, c in suite.sequences]
    return [math.fsum(logprobs) for logprobs in engine.score(requests)]


def no_value(suite: str, items: int, details: Sequence[str] = ()) -> RunError:
    """Return the error of a suite on which nothing has a value.

    Args:
        details: what its metric said of single items.
    """
    return RunError(
        f"none of the {items} items of suite {suite!r} has a value",
        where=suite,
        cause=details[0] if details else "its metric abstained on every item",
    )


def _results(
    suite: Suite,
    snapshot: SnapshotId,
    scores: Sequence[ItemScore] | Sequence[Score],
    tokens: int,
) -> ItemResults:
    values = [score.value for score in scores if score.value is not None]
    early = suite.early
    if not values and (early is None or len(scores) == early.items):
        raise no_value(suite.name, len(scores), [s.detail for s in scores if s.detail is not None])
    if early is not None and suite.value_range is not None:
        worst = min(0.0, suite.value_range[0])  # The same in whatever parts it is measured.
    else:
        worst = min([0.0, *values])
    answers = [score.completion for score in scores if isinstance(score, ItemScore)]
    finishes: tuple[FinishReason, ...] = tuple(one.finish_reason for one in answers)
    return ItemResults(
        suite=suite.name,
        suite_hash=suite.hash,
        snapshot=snapshot,
        item_ids=suite.item_ids,
        values=tuple(worst if score.value is None else float(score.value) for score in scores),
        statuses=tuple(score.status for score in scores),
        finishes=finishes or tuple("stop" for _ in scores),
        prompts=tuple(map(rendered, suite.prompts)),
        answers=tuple(one.text for one in answers),
        clusters=suite.item_clusters,
        tokens=tokens,
    )
