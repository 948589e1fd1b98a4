"""Episodes that a store keeps, and what is counted of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from align.algorithms.rows import Batch, Row, row_of
from align.data.examples.stream import Unit
from align.data.ngrams import ngram_metrics, repeated_share, turns_of
from align.data.replay.examples import OwnedExamples
from align.data.replay.rehearsal import answer_units
from align.data.stored_answers import load_answers, save_answers
from align.round.meters import rollout_metrics
from rollouts.types import TokenSpan
from tests.unit.episodes import episode, scored

EPISODE = episode(
    (4, 5), (9, 9, 9), (6,), calls=2, failed_calls=1, reward=1.0, turn_rewards=(0.5, None)
)
PLAIN = episode((7, 8))


def test_stored_answers_keep_what_was_observed(tmp_path: Path) -> None:
    group = scored(EPISODE, replace(PLAIN, episode=None), values=(1.0, 0.0)).group
    save_answers(tmp_path / "a.jsonl", [group])
    loaded, plain = load_answers(tmp_path / "a.jsonl")
    assert loaded.completions_G[0].observed == (TokenSpan(2, 5),)
    assert plain.completions_G[0].episode is None
    (first, _) = answer_units([group])
    (again,) = answer_units([loaded])
    assert again.id == first.id
    for name in ("prompt_ids", "completion_ids", "observed"):
        assert getattr(again.rows[0], name) == getattr(first.rows[0], name)
    assert again.rows[0].num_sampled == 3


@pytest.mark.parametrize(
    ("completion", "version"), [(EPISODE, 2), (replace(PLAIN, episode=None), 1)]
)
def test_a_store_without_episodes_stays_as_earlier_versions_read_it(
    tmp_path: Path, completion: object, version: int
) -> None:
    group = scored(completion, values=(1.0,)).group  # type: ignore[arg-type]
    save_answers(tmp_path / "a.jsonl", [group])
    unit = Unit(id="u", prompt=None, rows=(row_of(group, group.completions_G[0], 1.0),))
    examples = OwnedExamples(round="first", owner="f00", material="demonstrations", units=(unit,))
    examples.save(tmp_path / "b.jsonl")
    for name in ("a.jsonl", "b.jsonl"):
        head, line = (tmp_path / name).read_text().splitlines()
        assert json.loads(head)["schema_version"] == version
        assert ("observed" in line) == (version == 2)
    row: Row = OwnedExamples.load(tmp_path / "b.jsonl").units[0].rows[0]
    assert (row.completion_ids, row.observed) == (
        unit.rows[0].completion_ids,
        unit.rows[0].observed,
    )


def test_repetition_is_counted_within_turns() -> None:
    call = (1, 2, 3, 4)
    made = episode(call, (9, 9, 9, 9, 9, 9, 9, 9), call, (9,) * 8)
    assert turns_of(made) == [call, call]
    assert repeated_share(*turns_of(made)) == 0.0
    metrics = ngram_metrics([scored(made, values=(0.0,)).group])
    assert metrics["completions/repeated_ngrams"] == 0.0
    looping = episode((7,) * 8, (9,), (1,))
    assert repeated_share(*turns_of(looping)) == pytest.approx(4 / 5)


def test_meters_of_episodes() -> None:
    other = episode((4,), (9,), (5,), end="turns", turns=2, calls=2, turn_rewards=(0.0, 1.0))
    group = scored(EPISODE, other, values=(1.0, 0.0))
    metrics = rollout_metrics([group], Batch(rows=()))
    assert metrics["completions/tokens_mean"] == 2.5
    assert metrics["episodes/environment_reward"] == 1.0
    assert metrics["episodes/turn_reward"] == 0.5
    plain = scored(replace(PLAIN, episode=None), values=(1.0,))
    assert not any(
        name.startswith("episodes/") for name in rollout_metrics([plain], Batch(rows=()))
    )
