"""Passes side by side: the same sums as one after the other, and the same in every run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import algorithm_from
from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner import references as references_module
from align.learner.batching import cost, even_passes, passes
from align.learner.learner import Learner
from align.learner.ranks.lanes import Gradients, Lanes, dealt_evenly, lanes_for
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from tests.patience import patient
from tests.unit.tiny import row, save_model

ROWS = tuple(
    row((1, 2, 3 + number), tuple(4 + (number * step) % 9 for step in range(2 + number)), side)
    for number in range(6)
    for side in (1.0, -0.5)
)
HELD = (row((2, 2, 2, 2), (9, 1), None, "past", "other", "first"), row((5,), (7,), None, "general"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(
    models: dict[str, Path], tmp_path: Path, threads: int, name: str = "grpo", **policy: Any
) -> Training:
    spec = RoundSettings(
        algorithm=algorithm_from({"name": name}),
        anchors=AnchorsConfig(
            new=(AnchorConfig(to="parent", beta=0.1),),
            past=(AnchorConfig(to="owner", beta=3.0),),
            general=(AnchorConfig(to="base", beta=1.0),),
        ),
        optimizer=OptimizerConfig(micro_batch_tokens=30, lr=1e-2),
    )
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", threads=threads, **policy),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    references = References(base="base", parent="base", rounds={"first": "other"})
    training = learner.begin(spec, references, num_steps=5, seed=0, penalties=RetentionMethods())
    return training


def weights(training: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in training.learner.policy.parameters()])


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_two_lanes_take_the_step_of_one(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    trainings = [make(models, tmp_path, threads, name) for threads in (1, 2)]
    assert [training.learner.lanes.count for training in trainings] == [1, 2]
    for _ in range(2):
        one, two = (training.update(Batch(rows=ROWS + HELD)) for training in trainings)
        for metric in one.keys() - {"time/update_s"}:
            assert two[metric] == pytest.approx(one[metric], rel=1e-4, abs=1e-6), metric
    start = weights(make(models, tmp_path, 1, name))
    one, two = map(weights, trainings)
    assert (one - two).norm() <= 1e-3 * (one - start).norm()


def test_gradients_of_lanes_are_those_of_one(models: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for threads in (1, 2):
        training = make(models, tmp_path, threads)
        training._optimize = dict  # type: ignore[method-assign]
        training.update(Batch(rows=ROWS + HELD))
        grads = [p.grad for p in training.learner.policy.parameters() if p.grad is not None]
        found.append(torch.cat([g.flatten() for g in grads]))
    assert (found[0] - found[1]).norm() <= 1e-6 * found[0].norm()


def test_lanes_make_the_same_bits_in_every_run(models: dict[str, Path], tmp_path: Path) -> None:
    runs = []
    for _ in range(3):
        training = make(models, tmp_path, 2)
        for _ in range(3):
            training.update(Batch(rows=ROWS + HELD))
        runs.append(weights(training))
    assert all(torch.equal(runs[0], other) for other in runs[1:])


def test_anchors_are_loaded_before_passes_run_side_by_side(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers sets the process's default dtype while it loads, and every thread would see it."""
    loaded, real = [], references_module.load_model

    def load(folder: Path, *rest: Any) -> Any:
        loaded.append((folder.name, threading.current_thread() is threading.main_thread()))
        return real(folder, *rest)

    monkeypatch.setattr(references_module, "load_model", load)
    training = make(models, tmp_path, 2, dtype="bfloat16")
    training.update(Batch(rows=ROWS + HELD))
    assert sorted(loaded) == [("base", True), ("other", True)]


def test_one_lane_where_anchors_do_not_stay_in_memory(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make(models, tmp_path, 2)
    training.learner.anchors._cache_bytes = 1
    threads = set()
    real = training.objective.anchors.outputs

    def outputs(*args: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return real(*args)

    monkeypatch.setattr(training.learner.anchors, "outputs", outputs)
    training.update(Batch(rows=ROWS + HELD))
    assert threads == {True}


def test_no_lanes_where_passes_would_disturb_each_other(
    models: dict[str, Path], tmp_path: Path
) -> None:
    assert make(models, tmp_path, 2, lora=LoraConfig(rank=2)).learner.lanes.count == 1


def test_items_are_in_their_order_and_lanes_in_threads_of_their_own() -> None:
    lanes, meeting = Lanes(2, threads=2), threading.Barrier(2, timeout=patient(30))

    def work(lane: int, item: int) -> tuple[int, int, int]:
        if item in (0, 1):
            meeting.wait()
        return item, lane, torch.get_num_threads()

    torch.set_num_threads(2)
    found = lanes.each(work, range(5), [9, 9, 1, 1, 1])
    assert [item for item, _, _ in found] == [0, 1, 2, 3, 4]
    assert found[0][1] != found[1][1]
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == 2


def test_an_error_comes_once_all_lanes_have_stopped() -> None:
    lanes, done = Lanes(2, threads=2), []

    def work(lane: int, item: int) -> None:
        if item == 0:
            raise ValueError("no")
        done.append(item)

    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="no"):
        lanes.each(work, range(4), [5, 2, 2, 2])
    assert sorted(done) == [1, 2, 3]
    assert torch.get_num_threads() == 2


def test_gradients_that_share_memory_are_added_once() -> None:
    """The gradients of a sum are one tensor."""
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    unused = torch.nn.Parameter(torch.zeros(1))
    gradients = Gradients([first, second, unused], 2)
    for lane in (0, 1, 1):
        gradients.add(lane, (first + second).sum() + first.sum())
    gradients.collect()
    assert first.grad is not None and first.grad.tolist() == [6.0, 6.0]
    assert second.grad is not None and second.grad.tolist() == [3.0, 3.0]
    assert unused.grad is not None and unused.grad.tolist() == [0.0]


def test_large_models_have_one_lane() -> None:
    assert lanes_for(1_000_000, threads=4) == 4
    assert lanes_for(60_000_000, threads=4) == 2
    assert lanes_for(1_000_000_000, threads=4) == 1


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 5))
def test_a_deal_has_everything_once_and_is_even(sizes: list[int], hands: int) -> None:
    dealt = dealt_evenly(sizes, hands)
    assert sorted(index for hand in dealt for index in hand) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in hand) for hand in dealt]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.integers(1, 3))
def test_even_passes_keep_the_budget_and_every_row(lengths: list[int], lanes: int) -> None:
    rows = [row((1,), (2,) * length, 1.0) for length in lengths]
    found = even_passes(rows, 120, lanes, packed=True)
    assert sorted(map(len_of, (r for some in found for r in some))) == sorted(map(len_of, rows))
    for some in found:
        assert len(some) * max(r.num_tokens for r in some) <= 120

    def longest(split: list[list[Row]]) -> int:
        costs = [cost(some) for some in split]
        return max(sum(costs[i] for i in hand) for hand in dealt_evenly(costs, lanes))

    assert longest(found) <= longest(list(passes(rows, 120, packed=True)))


def len_of(one: Row) -> int:
    return one.num_tokens


def test_lanes_share_what_passes_hold(models: dict[str, Path], tmp_path: Path) -> None:
    one, two = (make(models, tmp_path, threads) for threads in (1, 2))
    assert (one._budget(), two._budget()) == (30, 15)
