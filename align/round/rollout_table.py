"""Table of a step's samples: what was asked and answered, what each reward said, what was learned.

    rounds/<index>-<name>/attempt-<n>/rollouts/step-0000.parquet
    rounds/<index>-<name>/attempt-<n>/<repair>/rollouts/step-0000.parquet

One row per completion, in the order of the step. Columns of a fixed name come first; then for every part
of the rubric ``reward/<part>`` (its raw value), ``term/<part>`` (as it counts: normalised, or empty behind
a closed gate) and ``why/<part>`` (why it failed); then ``extra/<part>/<column>`` for what it gave
``log_extra``. ``advantage`` is empty where a completion teaches nothing, or where only the learner knows;
where turns of an episode have advantages of their own, it is that of the whole. ``tokens`` counts what the
policy sampled. Episodes add the columns of `ACTED`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.algorithms.policy_gradient.turns import turn_lengths
from align.algorithms.rows import Row
from align.round.times.clock import phase
from align.store.durable import write_atomic
from align.store.paths import StorePaths
from align.store.run_folder import RoundFolder, RunFolder, tables_below
from rollouts.errors import RunError, UserError, nearest
from rollouts.types import Completion, Episode, RolloutGroup, Score, ScoredGroup

if TYPE_CHECKING:
    import pyarrow as pa

    from align.algorithms.rows import Batch
    from align.config.campaign import CampaignConfig
    from align.round.plan import RoundPlan
    from align.round.session import Session

Keep = int | Literal["all", "none"]
"""Number of a round's last steps that stay on disk."""
FIXED = {
    "group": "int64", "sample": "int64", "prompt_id": "string", "source": "string", "owner": "string",
    "round": "string", "prompt": "string", "completion": "string", "tokens": "int64",
    "finish": "string", "version": "string", "status": "string", "value": "float64",
    "detail": "string", "advantage": "float64",
}  # fmt: skip
"""Columns that every table has, by type."""
ACTED = {"episode": "string", "turns": "int64", "calls": "int64", "failed_calls": "int64"}
"""Further columns of a table with episodes; ``episode`` holds turns, calls and results as JSON."""
ORDERS = {"reward": "value", "length": "tokens", "advantage": "advantage"}
"""Words that rows can be sorted by besides the parts, and the column behind each."""

Record = dict[str, Any]
"""One row, by column."""


@phase("records")
def keep_rollouts(
    plan: RoundPlan, session: Session, step: int, scored: Sequence[ScoredGroup], batch: Batch
) -> None:
    """Write the table of a step, and remove those of steps that are no longer kept."""
    keep = session.config.keep_rollouts
    if keep == "none" or not scored:
        return
    folder = session.run_folder(plan)
    save_records(folder.table(step), records_of(scored, batch.rows))
    store = session.store
    store.withdraw(store.paths.relative(path) for path in prune(folder, keep))


def records_of(scored: Sequence[ScoredGroup], rows: Sequence[Row] = ()) -> list[Record]:
    """Make one record per completion, failed ones included.

    Args:
        rows: what the learner was given; the advantages are read from them. Rows that repeat another's
            tokens are told apart by their order.
    """
    learnt: defaultdict[Any, deque[Row]] = defaultdict(deque)
    for row in rows:
        learnt[row.prompt_ids, row.completion_ids].append(row)
    records = []
    for index, group in enumerate(scored):
        pairs = zip(group.group.completions_G, group.scores_G, strict=True)
        for sample, (completion, score) in enumerate(pairs):
            matching = learnt.get((group.group.prompt_ids, completion.token_ids))
            taught = matching.popleft() if matching else None
            records.append(
                {
                    "group": index,
                    "sample": sample,
                    "advantage": None if taught is None else taught.advantage,
                    **_columns(group.group, completion, score),
                    **_acted(completion.episode, taught),
                }
            )
    return records


def save_records(path: Path, records: Sequence[Record]) -> None:
    """Write parquet; the file is there whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys([*FIXED, *(name for record in records for name in record)])
    table = pa.table({name: _column(name, [r.get(name) for r in records]) for name in names})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def load_records(path: Path) -> list[Record]:
    """Load what `save_records` wrote.

    Raises:
        RunError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records: list[Record] = pq.ParquetFile(path).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"the rollouts cannot be read: {error}", where=str(path), remedy="delete the file"
        ) from error
    return records


def prune(folder: RunFolder, keep: Keep) -> list[Path]:
    """Remove all tables but those of the last ``keep`` steps; return their paths."""
    if keep == "all":
        return []
    tables = list(folder.tables().values())
    removed = tables[: max(0, len(tables) - (0 if keep == "none" else keep))]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def forget_prompts(folder: Path, prompts: Collection[str]) -> dict[Path, int]:
    """Remove what was asked under these ids, and every answer to it, from all tables below a folder.

    Returns:
        How many rows each table lost; one that has none left is gone.

    Raises:
        RunError: a table is damaged.
    """
    lost: dict[Path, int] = {}
    for path in tables_below(folder) if prompts else ():
        records = load_records(path)
        rest = [record for record in records if record["prompt_id"] not in prompts]
        if len(rest) == len(records):
            continue
        lost[path] = len(records) - len(rest)
        if rest:
            save_records(path, rest)
        else:
            path.unlink()
    return lost


def find_table(
    config: CampaignConfig, round_name: str, step: int | None, repair: str = ""
) -> tuple[int, Path]:
    """Find the table of a step in the round's latest attempt that has it; return the step and the path.

    Args:
        step: None: the last one there is.
        repair: label of a repair of the round, such as ``distil``; empty: the round itself.

    Raises:
        UserError: there is no such round, repair or table; what there is is named.
    """
    folder = _round_folder(config, round_name)
    tables: dict[int, Path] = {}
    for attempt in folder.attempts():
        tables |= attempt.repair(repair).tables()
    others = repairs_with_tables(config, round_name)
    if repair and repair not in others:
        raise UserError(
            f"no rollouts of a repair {repair!r} of round {round_name!r} are kept",
            where="--repair",
            cause="the round was not repaired like this, or only by weights between two snapshots",
            remedy=f"kept are {', '.join(others)}" if others else "leave --repair out",
        )
    if not tables:
        raise UserError(
            f"no rollouts of round {round_name!r} are kept",
            where=str(folder.path),
            cause="it has not begun, learns from a file, or keep_rollouts is none",
        )
    if step is None:
        step = max(tables)
    if step not in tables:
        raise UserError(
            f"no rollouts of step {step} of round {round_name!r} are kept",
            where="--step",
            cause=f"steps count from 0, and keep_rollouts is {config.keep_rollouts}",
            remedy=f"kept are {_ranges(sorted(tables))}",
        )
    return step, tables[step]


def repairs_with_tables(config: CampaignConfig, round_name: str) -> list[str]:
    """List the labels of a round's repairs that sampled; those that only mix weights did not.

    Raises:
        UserError: there is no such round.
    """
    attempts = _round_folder(config, round_name).attempts()
    repairs = (repair for attempt in attempts for repair in attempt.repairs())
    return sorted({repair.path.name for repair in repairs if repair.tables()})


def _round_folder(config: CampaignConfig, round_name: str) -> RoundFolder:
    names = [spec.name for spec in config.rounds]
    if round_name not in names:
        raise UserError(
            f"there is no round {round_name!r}", where="ROUND", remedy=nearest(round_name, names)
        )
    return StorePaths(config.folder).round(names.index(round_name), round_name)


def ordered(records: Sequence[Record], by: str, *, worst: bool = False) -> list[Record]:
    """Sort records by ``reward``, ``length``, ``advantage`` or a part, the largest first.

    Those without a number come last either way.

    Raises:
        UserError: there is no such part.
    """
    parts = {name.partition("/")[2]: name for name in records[0] if name.startswith("reward/")}
    acted = [name for name in ("turns", "calls", "failed_calls") if name in records[0]]
    known: dict[str, str] = {**parts, **dict(zip(acted, acted, strict=True)), **ORDERS}
    if by not in known:
        raise UserError(
            f"rollouts have no part {by!r}", where="--by", remedy=nearest(by, list(known))
        )
    column = known[by]
    numbered = [record for record in records if record[column] is not None]
    rest = [record for record in records if record[column] is None]
    return [*sorted(numbered, key=lambda record: record[column], reverse=not worst), *rest]


def _columns(group: RolloutGroup, completion: Completion, score: Score) -> Record:
    prompt = group.prompt
    messages = [dict(message) for message in prompt.messages or ()]
    versions = dict.fromkeys(span.version for span in completion.weight_versions)
    record: Record = {
        "prompt_id": prompt.id,
        "source": prompt.source,
        "owner": prompt.owner,
        "round": prompt.round,
        "prompt": json.dumps(messages) if prompt.text is None else prompt.text,
        "completion": completion.text,
        "tokens": completion.num_sampled,
        "finish": completion.finish_reason,
        "version": " ".join(versions) or group.policy,
        "status": score.status,
        "value": score.value,
        "detail": score.detail,
    }
    terms = score.terms if score.status == "scored" else {}
    for name, value in score.parts.items():
        record[f"reward/{name}"] = value
        record[f"term/{name}"] = terms.get(name)
        record[f"why/{name}"] = score.failures.get(name)
    return record | {f"extra/{name}": value for name, value in score.extras.items()}


def _acted(episode: Episode | None, row: Row | None) -> Record:
    """Return what an episode adds to the record of a completion; ``episode`` is JSON."""
    if episode is None:
        return {}
    advantages_T = None if row is None else row.advantages_T
    ends = [] if row is None else accumulate(turn_lengths(row))
    content: Record = {
        "messages": [dict(message) for message in episode.messages],
        "end": episode.end,
        "reward": episode.reward,
        "turn_rewards": list(episode.turn_rewards),
        "turn_advantages": [advantages_T[end - 1] for end in ends] if advantages_T else [],
        "state": dict(episode.state),
        "environment": episode.environment,
    }
    return {
        "episode": _text(content),
        "turns": episode.turns,
        "calls": episode.calls,
        "failed_calls": episode.failed_calls,
    }


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    """Make a column of numbers or texts; anything else that a reward may log becomes JSON."""
    import pyarrow as pa

    known = FIXED.get(name) or ACTED.get(name)
    kind = known or ("string" if name.startswith("why/") else "float64")
    if name.startswith("extra/"):
        # A column of floats holds what has a largest value: floats, and no larger integers.
        numeric = [
            type(v) is float or (type(v) is int and abs(v) <= sys.float_info.max)
            for v in values
            if v is not None
        ]
        if not all(numeric):
            kind = "string"
            values = [None if v is None else _text(v) for v in values]
    elif kind == "string":
        values = [None if v is None else _valid(v) for v in values]
    return pa.array(values, getattr(pa, kind)())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _valid(value)
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError):  # Keys that are no text, or a value that holds itself.
        return _valid(str(value))


def _valid(text: str) -> str:
    """Replace half surrogate pairs: they are no Unicode, and parquet refuses them."""
    return text.encode("utf-8", "replace").decode()


def _ranges(steps: Sequence[int]) -> str:
    """Write step numbers as ranges.

    >>> _ranges([0, 1, 2, 5])
    '0 to 2, 5'
    """
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
