"""References' logprobs of rows from files are computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.algorithms import algorithm_from
from align.algorithms.rows import DATA, Batch, Row
from align.config.campaign import AnchorConfig, AnchorsConfig, PolicyConfig, RoundSettings
from align.learner.learner import Learner
from align.learner.reference_cache import ReferenceCache
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row, save_model

ONE = (("base", 1.0),)


def filled(completion: tuple[int, ...], *values: float) -> Row:
    return replace(row((1, 2), completion), policy=DATA, reference_logprobs_T=values)


def test_a_row_is_known_by_its_tokens_and_its_reference() -> None:
    cache = ReferenceCache()
    cache.keep([filled((3, 4), -1.0, -2.0)], ONE, 1.0)
    asked = replace(filled((3, 4)), reference_logprobs_T=None, advantage=-1.0, unit=7)
    found = cache.recall(asked, ONE, 1.0)
    assert found == replace(asked, reference_logprobs_T=(-1.0, -2.0))
    assert cache.recall(asked, (("other", 1.0),), 1.0) is None
    assert cache.recall(asked, (("base", 0.5), ("other", 0.5)), 1.0) is None
    assert cache.recall(asked, ONE, 0.7) is None
    assert cache.recall(replace(asked, completion_ids=(3, 5)), ONE, 1.0) is None
    # The same tokens, but another one is the first of the answer.
    moved = replace(asked, prompt_ids=(1, 2, 3), completion_ids=(4,))
    assert cache.recall(moved, ONE, 1.0) is None


def test_samples_are_not_kept() -> None:
    cache = ReferenceCache()
    cache.keep([replace(filled((3,), -1.0), policy="r/3")], ONE, 1.0)
    assert len(cache) == 0


def test_the_least_recently_used_goes() -> None:
    cache = ReferenceCache(max_tokens=4)
    rows = [filled((3, token), -1.0, -2.0) for token in range(3)]
    cache.keep(rows[:2], ONE, 1.0)
    assert cache.recall(rows[0], ONE, 1.0) is not None
    cache.keep(rows[2:], ONE, 1.0)
    assert [cache.recall(r, ONE, 1.0) is not None for r in rows] == [True, False, True]
    cache.keep(rows[2:], ONE, 1.0)
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def asking(
    base: Path, scratch: Path, name: str, source: dict[str, Any]
) -> tuple[Training, list[int]]:
    """A learner, and how many rows each pass over a frozen snapshot had."""
    learner = Learner(
        base, PolicyConfig(model="tiny"), folder_of=lambda _: base, scratch=scratch, tolerance=1e9
    )
    anchors = AnchorsConfig(new=(AnchorConfig(to="base", beta=1.0),), past=(), general=())
    spec = RoundSettings(algorithm=algorithm_from({"name": name, **source}), anchors=anchors)
    training = learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    asked: list[int] = []
    outputs = learner.anchors.outputs

    def counted(snapshot: str, micro: Any, temperature: float) -> Any:
        asked.append(len(micro.rows))
        return outputs(snapshot, micro, temperature)

    learner.anchors.outputs = counted  # type: ignore[method-assign]
    return training, asked


PAIR = tuple(
    replace(row((1, 2), completion, side), policy=DATA, unit=0)
    for completion, side in (((3, 4), 1.0), ((5,), -1.0))
)


def test_a_pair_that_comes_again_asks_no_reference(base: Path, tmp_path: Path) -> None:
    training, asked = asking(base, tmp_path, "dpo", {"pairs": "file"})
    first = training.update(Batch(rows=PAIR))
    again = training.update(Batch(rows=PAIR))
    assert asked == [2]
    # The policy has moved, the reference has not.
    assert first["pairs/margin"] == pytest.approx(0.0, abs=1e-5)
    assert again["pairs/margin"] > 1e-5
    other = replace(PAIR[1], completion_ids=(6, 7), sampler_logprobs_T=())
    training.update(Batch(rows=(PAIR[0], other)))
    assert asked == [2, 1]


def test_rows_that_kl_alone_holds_have_no_reference(base: Path, tmp_path: Path) -> None:
    training, asked = asking(base, tmp_path, "dpo", {"pairs": "file"})
    training.update(Batch(rows=(*PAIR, row((7,), (8, 9), None, "general"))))
    assert asked == [2]
