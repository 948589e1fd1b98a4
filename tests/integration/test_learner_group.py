"""Several ranks over real Ray actors and gloo: the same numbers as one, and deaths that are told."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.importance import ImportanceConfig
from align.algorithms.rows import DATA, Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.config.policy import WaitsConfig
from align.config.retention.methods import EWCConfig, L2SPConfig
from align.errors import SnapshotError
from align.learner.heads.critic import Critic
from align.learner.learner import Learner
from align.learner.ranks.group import GroupTraining, LearnerGroup
from align.learner.references import References, Toward
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from rollouts.engines.transfer.host import from_host
from rollouts.errors import RunError
from tests.patience import patient
from tests.unit.tiny import row, save_model

pytestmark = pytest.mark.usefixtures("ray_cluster")

NOTES: list[str] = []
IDENTITY = {"config": "abc", "parent": "base"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"gradient_checkpointing": True},
    "lora": {"lora": LoraConfig(rank=4, alpha=8.0), "gradient_checkpointing": True},
}
SPEC = RoundSettings(
    # Two mini-batches need start logprobs, and seven padded tokens a pass make uneven shares.
    optimizer=OptimizerConfig(lr=3e-3, mini_batches=2, micro_batch_tokens=7),
    anchors=AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=0.1, target=0.02),),
        past=(),
        general=(AnchorConfig(to="base", beta=1.0),),
    ),
)
BATCHES = [
    Batch(
        rows=(
            row((1, 2, 3), (4, 5, step), 1.0),
            row((7, step), (8, 9, 10), -1.0),
            row((3, 4), (5, 6, 7, 8), 0.5),
            row((1, step), (3,), 0.0),
            row((5, 6), (7, 8, step), None, "general"),
        )
    )
    for step in range(1, 6)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def groups(
    ray_cluster: None, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], LearnerGroup]]:
    """Two ranks of a kind, started when first asked for and again after they died."""
    alive: dict[str, LearnerGroup] = {}

    def group_of(kind: str) -> LearnerGroup:
        if kind not in alive or not alive[kind]._actors:
            alive[kind] = LearnerGroup(
                base,
                PolicyConfig(model="tiny", ranks=2, **KINDS[kind]),
                folder_of=lambda _: base,
                scratch=tmp_path_factory.mktemp(kind),
                tolerance=1e9,
                waits=WaitsConfig(ranks_start_s=patient(120), ranks_s=patient(60), silence_s=1.0),
                note=NOTES.append,
            )
        return alive[kind]

    yield group_of
    for group in alive.values():
        group.close()


def alone(base: Path, scratch: Path, kind: str) -> Learner:
    """One rank, in this process; without gradient checkpointing, which must not matter."""
    config = PolicyConfig(model="tiny", **{**KINDS[kind], "gradient_checkpointing": False})
    return Learner(base, config, folder_of=lambda _: base, scratch=scratch, tolerance=1e9)


def begin(
    learner: Learner | LearnerGroup,
    kind: str,
    spec: RoundSettings = SPEC,
    methods: RetentionMethods = RetentionMethods(),  # noqa: B008  (frozen)
) -> Training | GroupTraining:
    references = References(base="base", parent="base")
    training = learner.begin(spec, references, num_steps=len(BATCHES), seed=3, penalties=methods)
    if kind == "full":
        # The first batch then counts as sampled with these weights, so the parity meter runs.
        learner.weights("")
    return training


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + patient(20)
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, pids))


PPO = SPEC.model_copy(update={"algorithm": algorithm_from("ppo")})
EIGHT_BIT = SPEC.model_copy(
    update={"optimizer": SPEC.optimizer.model_copy(update={"moments": "8bit"})}
)
FILES: dict[str, Any] = {
    "dpo": {"name": "dpo", "pairs": "file"},
    "kto": {"name": "kto", "ratings": "file"},
}
"""Algorithms that learn from a file; each row comes with its opposite, as pairs do."""


def of_a_file(spec: RoundSettings, batch: Batch) -> Batch:
    """The batch's prompts with an answer wanted and one not, as rows that nobody sampled."""
    read: list[Row] = []
    for unit, one in enumerate(batch.rows[:4]):
        told = replace(one, policy=DATA, sampler_logprobs_T=(), unit=unit)
        read.append(replace(told, advantage=1.0))
        read.append(replace(told, advantage=-1.0, completion_ids=(*one.completion_ids[::-1], 2)))
    return Batch(rows=(*spec.algorithm.examples(read), *batch.rows[4:]))


def lesson(case: str, teacher: Path) -> tuple[str, RoundSettings, Sequence[Batch]]:
    """Parameters of a test: the kind of ranks, their algorithm, and its data."""
    if case in FILES:
        spec = SPEC.model_copy(update={"algorithm": algorithm_from(FILES[case])})
        return "full", spec, [of_a_file(spec, batch) for batch in BATCHES]
    if case == "distill":
        chosen = algorithm_from({"name": "distill", "teacher": f"model:{teacher}"})
        return "full", SPEC.model_copy(update={"algorithm": chosen}), BATCHES
    if case == "lora":
        return "lora", SPEC, BATCHES
    return "full", {"full": SPEC, "ppo": PPO, "8bit": EIGHT_BIT}[case], BATCHES


@pytest.mark.parametrize(
    "case",
    [
        "full",
        "ppo",
        "lora",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ["dpo", "kto", "distill", "8bit"]),
    ],
)
def test_two_ranks_learn_what_one_does(
    groups: Callable[[str], LearnerGroup], base: Path, tmp_path: Path, case: str
) -> None:
    kind, spec, batches = lesson(case, save_model(tmp_path / "teacher", seed=1))
    one, two = alone(base, tmp_path, kind), groups(kind)
    first, second = begin(one, kind, spec), begin(two, kind, spec)
    rows = list(BATCHES[0].rows)
    for batch in batches:
        expected, found = first.update(batch), second.update(batch)
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"time/update_s"}:
            assert found[name] == pytest.approx(expected[name], abs=1e-4, rel=1e-4), name
        assert expected["grad_norm"] > 1e-2
        drift = first.divergence(rows, "base")
        assert second.divergence(rows, "base") == pytest.approx(drift, rel=1e-3, abs=1e-5)
    for ours, theirs in zip(
        one.completion_logprobs(rows), two.completion_logprobs(rows), strict=True
    ):
        assert theirs == pytest.approx(ours, abs=1e-4)
    if kind == "full":
        ours, theirs = one.weights("a").tensors, dict(from_host(two.weights("a").tensors))
        assert theirs.keys() == ours.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)
    one.save(tmp_path / "one"), two.save(tmp_path / "two")
    parts = {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    names = {f.name for f in (tmp_path / "one").iterdir()}
    expected_names = names if kind == "lora" else names - {"model.safetensors"} | parts
    assert {f.name for f in (tmp_path / "two").iterdir()} == expected_names
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)
    assert (second.critic is None) == (first.critic is None) == (spec is not PPO)
    if isinstance(first.critic, Critic) and second.critic is not None:
        second.critic.save(tmp_path / "critic")
        theirs = tensors(tmp_path / "critic")
        assert theirs.keys() == first.critic.named_tensors().keys()
        assert theirs["head.weight"].any()
        for name, tensor in first.critic.named_tensors().items():
            torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-4)
    if kind == "lora":
        assert tensors(Path(two.weights("r/1").adapter)).keys() == ours.keys()
    two.load("base")
    assert second.divergence(rows, "base") == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("spec", [SPEC, PPO], ids=["grpo", "ppo"])
def test_a_checkpoint_of_two_ranks_goes_on_exactly(
    groups: Callable[[str], LearnerGroup], base: Path, tmp_path: Path, spec: RoundSettings
) -> None:
    group = groups("full")
    training = begin(group, "full", spec)
    for batch in BATCHES[:3]:
        training.update(batch)
    training.checkpoint(tmp_path / "kept", 3, identity=IDENTITY)
    expected = [training.update(batch) for batch in BATCHES[3:]]
    group.save(tmp_path / "straight")
    if training.critic is not None:
        training.critic.save(tmp_path / "straight")

    training = begin(group, "full", spec)
    with pytest.raises(SnapshotError, match="another parent"):
        training.restore(tmp_path / "kept", identity={**IDENTITY, "parent": "other"})
    found = training.restore(tmp_path / "kept", identity=IDENTITY)
    assert found is not None and found.step == 3
    for batch, metrics in zip(BATCHES[3:], expected, strict=True):
        assert {**training.update(batch), "time/update_s": 0} == {**metrics, "time/update_s": 0}
    group.save(tmp_path / "resumed")
    if training.critic is not None:
        training.critic.save(tmp_path / "resumed")
    ours, theirs = tensors(tmp_path / "straight"), tensors(tmp_path / "resumed")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert ("head.weight" in ours) == (spec is PPO)

    one = begin(alone(base, tmp_path, "full"), "full", spec)
    with pytest.raises(SnapshotError, match="another ranks: '2', not '1'"):
        one.restore(tmp_path / "kept", identity=IDENTITY)


def test_ranks_that_share_the_weights_begin_between_two_snapshots(
    groups: Callable[[str], LearnerGroup],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, group = save_model(tmp_path / "other", seed=1), groups("full")
    monkeypatch.setattr(group, "_folder_of", {"base": base, "other": other}.__getitem__)
    toward = Toward(snapshot="other", share=0.25)
    references = References(base="base", parent="base", beginning=toward)
    group.begin(SPEC, references, num_steps=1, seed=3, penalties=RetentionMethods())
    (tmp_path / "between").mkdir()
    group.save(tmp_path / "between")
    start, end, between = (tensors(folder) for folder in (base, other, tmp_path / "between"))
    assert between.keys() == end.keys()
    assert all(torch.equal(between[n], torch.lerp(start[n], end[n], 0.25)) for n in end)


def test_a_killed_rank_is_named_and_nothing_is_left(
    groups: Callable[[str], LearnerGroup],
) -> None:
    group = groups("full")
    training = begin(group, "full")
    os.kill(group.pids[1], signal.SIGKILL)
    with pytest.raises(RunError, match="rank 1 died"):
        training.update(BATCHES[0])
    assert_gone(group.pids)
    with pytest.raises(RunError, match="closed"):
        training.update(BATCHES[0])
    group.close()


def test_a_rank_that_does_not_answer_is_named(groups: Callable[[str], LearnerGroup]) -> None:
    group = groups("lora")
    training = begin(group, "lora")
    # The other rank's answer must come in time, on a busy machine too.
    group._waits = WaitsConfig(ranks_s=patient(9), silence_s=1.0)
    NOTES.clear()
    os.kill(group.pids[1], signal.SIGSTOP)
    with pytest.raises(RunError, match=f"rank 1 did not answer within {patient(9):g} s"):
        training.divergence(list(BATCHES[0].rows), "base")
    assert re.search(r"divergence: no answer for \d+ s, and the run stops after", NOTES[0])
    assert NOTES[0].endswith("rank 1 gives no sign of life")
    assert_gone(group.pids)


def test_more_ranks_than_room_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no machine had room for 99 ranks"):
        LearnerGroup(
            base,
            PolicyConfig(model="tiny", ranks=99),
            folder_of=lambda _: base,
            scratch=tmp_path,
            waits=WaitsConfig(ranks_start_s=1),
        )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_are_held_by_weights_as_one_is(
    groups: Callable[[str], LearnerGroup], base: Path, tmp_path: Path, kind: str
) -> None:
    """EWC and L2-SP: the Fisher information that an accepted round leaves, and a round under it."""
    spec = SPEC.model_copy(
        update={
            "retention": (EWCConfig(strength=20.0), L2SPConfig(alpha=0.5, to="base")),
            # Ranks that an earlier test has used hold a version that no row was sampled with.
            "importance": ImportanceConfig(level="none"),
        }
    )
    one, two = alone(base, tmp_path, kind), groups(kind)
    metrics: dict[str, list[dict[str, float]]] = {"one": [], "two": []}
    for name, learner in (("one", one), ("two", two)):
        training = begin(learner, kind, spec)
        training.update(BATCHES[0])
        training.write_artifacts(tmp_path / name, BATCHES[1].rows)
        earlier = RetentionMethods(artifacts={"ewc": tmp_path / "one" / "ewc.safetensors"})
        training = begin(learner, kind, spec, earlier)
        metrics[name] = [training.update(batch) for batch in BATCHES[:3]]
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert theirs.keys() == ours.keys() and any(tensor.any() for tensor in ours.values())
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-4, rtol=1e-2)
    for expected, found in zip(metrics["one"], metrics["two"], strict=True):
        for name in ("retention/ewc", "retention/l2_sp", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    assert metrics["one"][2]["retention/ewc"] > 0 and metrics["one"][2]["retention/l2_sp"] > 0
