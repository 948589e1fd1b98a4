"""Results of one snapshot on one suite: one value per item, kept so that any verdict can be drawn again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from align.store.durable import replacing
from rewards.library.corpus.formulas import Array, Formula, formula_from
from rollouts.errors import RunError
from rollouts.types import FinishReason, SnapshotId

ItemStatus = Literal["scored", "abstained", "failed"]

METADATA = b"keel.item_results"
"""Key of the header in a file's metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemResults:
    """Values of one snapshot on one suite, item by item. Higher values are better."""

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
    """Label that an item shares with those it depends on; empty: every item counts by itself."""
    probabilities: tuple[tuple[float, ...], ...] = ()
    """Probability of every choice of an item, the right one first; empty where items have no choices."""
    counts: tuple[tuple[float, ...], ...] = ()
    """Counts of every item that the value of the whole suite is made of; empty where that is a mean."""
    formula: Formula | None = None
    """Formula of the whole suite's value, of the sum of ``counts``; None: the mean of ``values``."""
    tokens: int | None = field(default=None, compare=False)
    """Tokens generated or scored; None where they were not counted."""
    seconds: float | None = field(default=None, compare=False)
    """Wall time of the measurement; None where it was not recorded."""
    measured_by: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Version of ``vllm`` and kind of ``device``; empty where that was not recorded."""
    beside: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Further figures of the whole suite by name, such as an accuracy; no verdict reads them."""

    routes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Adapter of a bank that answered each item; empty without a bank, and where an item has several
    prompts."""
    retrieval_s: float | None = field(default=None, compare=False)
    """Wall time, within ``seconds``, of the retrieval of adapters; None without a bank."""

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.values), len(self.statuses), len(self.finishes)}
        if lengths != {len(set(self.item_ids))} or 0 in lengths:
            raise ValueError(f"results of {self.suite!r} need one value per distinct item")
        if len(self.clusters) not in (0, len(self.values)):
            raise ValueError(f"results of {self.suite!r} need one cluster per item, or none")
        if len(self.probabilities) not in (0, len(self.values)):
            raise ValueError(
                f"results of {self.suite!r} need probabilities of every item, or of none"
            )
        if len(self.counts) != (0 if self.formula is None else len(self.values)):
            raise ValueError(f"results of {self.suite!r} need a formula and counts of every item")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"results of {self.suite!r} hold a value that is not finite")

    @property
    def mean(self) -> float:
        """Value of the whole suite: the mean over the items, or that of a corpus metric on all of them."""
        if self.formula is not None:
            return self.formula.value(np.array(self.counts))
        return math.fsum(self.values) / len(self.values)

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
        """True if every value is 0 or 1, and the suite's is their mean."""
        return self.formula is None and all(value in (0.0, 1.0) for value in self.values)

    @property
    def routed(self) -> dict[str, float]:
        """Share of the items that each adapter of a bank answered, by its name."""
        counts = Counter(self.routes)
        return {name: counts[name] / len(self.routes) for name in sorted(counts)}

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
            **({} if self.retrieval_s is None else {"retrieval_s": self.retrieval_s}),
            **({"routed": self.routed} if self.routes else {}),
            **({} if self.formula is None else {"formula": self.formula.content}),
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
                        ("route", self.routes),
                    )
                    if texts
                },
                **{
                    name: pa.array(lists, pa.list_(pa.float64()))
                    for name, lists in (
                        ("probabilities", self.probabilities),
                        ("counts", self.counts),
                    )
                    if lists
                },
            }
        ).replace_schema_metadata({METADATA: json.dumps(header, sort_keys=True).encode()})
        with replacing(path) as staged:
            pq.write_table(table, staged)

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
            header = json.loads((table.schema.metadata or {})[METADATA])
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
                probabilities=tuple(map(tuple, columns.get("probabilities", ()))),
                counts=tuple(map(tuple, columns.get("counts", ()))),
                formula=formula_from(header["formula"]) if "formula" in header else None,
                tokens=header.get("tokens"),
                seconds=header.get("seconds"),
                measured_by=header.get("measured_by", {}),
                beside=header.get("beside", {}),
                routes=tuple(columns.get("route", ())),
                retrieval_s=header.get("retrieval_s"),
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
    try:
        seconds = header_of(path).get("seconds")
        return None if seconds is None else float(seconds)
    except (ValueError, TypeError):
        return None


def measured_figures(path: Path) -> dict[str, float]:
    """Return the figures beside the mean, of a file that `ItemResults.save` wrote.

    Empty if the file is missing or damaged, or has none. Only its header is read.
    """
    try:
        return {
            str(name): float(value) for name, value in header_of(path).get("beside", {}).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def header_of(path: Path) -> dict[str, Any]:
    """Return the header of a file that `ItemResults.save` wrote; empty if there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        header = json.loads((pq.read_schema(path).metadata or {})[METADATA])
        return header if isinstance(header, dict) else {}
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return {}


def paired(
    candidate: ItemResults, comparator: ItemResults
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values of both in the candidate's item order.

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


def paired_counts(candidate: ItemResults, comparator: ItemResults) -> tuple[Array, Array]:
    """Return the counts of both, ``N, K``, in the candidate's item order.

    Raises:
        RunError: the two were not measured on the same suite and items.
    """
    paired(candidate, comparator)
    before = dict(zip(comparator.item_ids, comparator.counts, strict=True))
    return np.array(candidate.counts), np.array([before[item] for item in candidate.item_ids])


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
