"""Names on the disk that stores of every version share."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from align.store.paths import (
    GENERAL_ANSWERS,
    NAMED_ELSEWHERE,
    REPEATS,
    REPLAYED,
    RIVAL_ANSWERS,
    StorePaths,
    remedy_of,
)
from align.store.run_folder import checkpoint_at, checkpoints_in

ID, HASH = "0123456789abcdef" * 4, "fedcba9876543210" * 4
STORE = StorePaths(Path("s"))
RUN = STORE.attempt(3, "sort", 2)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (STORE.ledger, "ledger.db"),
        (STORE.snapshot(ID), f"snapshots/{ID}"),
        (STORE.evaluation(ID, "x.parquet"), "evaluations/0123456789abcdef/x.parquet"),
        (STORE.repeats(ID, "x")[1], "evaluations/0123456789abcdef/aa/x-2.parquet"),
        (STORE.rival_answers("x", HASH), "evaluations/answers/x-fedcba9876543210.jsonl"),
        (
            STORE.reference(ID, HASH),
            "evaluations/references/0123456789abcdef-fedcba9876543210.json",
        ),
        (STORE.overlaps, "evaluations/overlap.json"),
        (STORE.replay(ID), "replay/0123456789abcdef.jsonl"),
        (STORE.general_answers(HASH), "replay/answers-fedcba9876543210.jsonl"),
        (STORE.inbox.drop, "inbox/drop"),
        (STORE.inbox.token, "inbox/token"),
        (STORE.serving_key, "serving/key"),
        (RUN.metrics, "rounds/03-sort/attempt-2/metrics.jsonl"),
        (RUN.signals, "rounds/03-sort/attempt-2/signals.json"),
        (RUN.times, "rounds/03-sort/attempt-2/times.json"),
        (RUN.artifact("ewc"), "rounds/03-sort/attempt-2/artifacts/ewc.safetensors"),
        (
            RUN.repair("distil").table(7),
            "rounds/03-sort/attempt-2/distil/rollouts/step-0007.parquet",
        ),
        (STORE.round(12, "sort").checkpoints("distil"), "rounds/12-sort/checkpoint-distil"),
        (
            checkpoint_at(STORE.round(12, "sort").checkpoints(), 40),
            "rounds/12-sort/checkpoint/step-00000040",
        ),
    ],
)
def test_a_file_lies_where_earlier_versions_put_it(path: Path, name: str) -> None:
    assert STORE.relative(path) == name


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (REPEATS, STORE.repeats(ID, "x")[0]),
        (RIVAL_ANSWERS, STORE.rival_answers("x", HASH)),
        (REPLAYED, STORE.replay(ID)),
        (GENERAL_ANSWERS, STORE.general_answers(HASH)),
    ],
)
def test_files_without_a_row_of_the_ledger_are_found_by_pattern(pattern: str, path: Path) -> None:
    assert fnmatch(STORE.relative(path), pattern)
    assert sum(fnmatch(STORE.relative(path), p) for p in (REPLAYED, GENERAL_ANSWERS)) <= 1


def test_prompts_and_results_matter_while_the_ledger_names_them() -> None:
    named = (STORE.replay(ID), STORE.evaluation(ID, "x.parquet"), RUN.artifact("ewc"))
    always = (
        STORE.general_answers(HASH),
        STORE.rival_answers("x", HASH),
        STORE.repeats(ID, "x")[0],
    )
    assert all(NAMED_ELSEWHERE.match(STORE.relative(path)) for path in named)
    assert not any(NAMED_ELSEWHERE.match(STORE.relative(path)) for path in always)


def test_every_file_that_can_be_lost_has_a_remedy() -> None:
    assert "keel gate aa" in remedy_of(STORE.relative(STORE.repeats(ID, "x")[0]))
    assert "when a round needs it" in remedy_of(STORE.relative(STORE.rival_answers("x", HASH)))
    assert "from its round's data" in remedy_of(STORE.relative(STORE.replay(ID)))


def test_attempts_and_steps_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = StorePaths(tmp_path).round(0, "sort")
    for number in (10, 2, 1):
        folder.attempt(number).path.mkdir(parents=True)
        checkpoint_at(folder.checkpoints(), number).mkdir(parents=True)
    assert [run.path.name for run in folder.attempts()] == ["attempt-1", "attempt-2", "attempt-10"]
    assert list(checkpoints_in(folder.checkpoints())) == [1, 2, 10]
    assert checkpoints_in(tmp_path / "nowhere") == {}


def test_prompts_are_told_from_answers(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    store.replay_buffers.mkdir()
    others = (store.general_answers(HASH), store.replay_examples(ID), store.prompt_history(ID))
    for path in (store.replay(ID), *others):
        path.touch()
    assert store.stored_prompts() == [store.replay(ID)]
    assert store.stored_histories() == [store.prompt_history(ID)]
