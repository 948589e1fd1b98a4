"""Checkpoints inside a round: going on is exact, and what does not fit is refused as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align.algorithms import algorithm_from
from align.algorithms.rows import DATA, Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.errors import SnapshotError
from align.learner.checkpoint import file_of, newest_checkpoint
from align.learner.learner import Learner
from align.learner.ranks.sharding import decoder_layers
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from align.store.run_folder import CHECKPOINT
from tests.unit.tiny import row, save_model

IDENTITY = {"config": "abc", "parent": "base"}
SPEC = RoundSettings(
    optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2, final_lr=0.5, micro_batch_tokens=12),
    anchors=AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=0.1, target=0.01),),
        past=(AnchorConfig(to="owner", beta=3.0, target=1.0),),
        general=(),
    ),
)
BATCHES = [
    Batch(
        rows=(
            row((1, 2, 3), (4, 5, step), 1.0),
            row((7, step), (8, 9, 10), -1.0),
            row((3, 4), (5, 6, 7, 8), 0.5),
            row((2, 2, 2, step), (9,), None, "past", "other", "first"),
        )
    )
    for step in range(1, 7)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def begun(models: dict[str, Path], tmp_path: Path, spec: RoundSettings, **policy: Any) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", **policy),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    training = learner.begin(
        spec,
        References(base="base", parent="base"),
        num_steps=6,
        seed=5,
        penalties=RetentionMethods(),
    )
    return training


def trained(training: Training) -> list[torch.Tensor]:
    critic = training.critic.parameters() if training.critic else []
    return [p.detach().clone() for p in (*training.learner.policy.parameters(), *critic)]


def betas(training: Training) -> list[float]:
    return [beta for betas in training.penalties[0].counters()["betas"].values() for beta in betas]


def pair(unit: int) -> list[Row]:
    """A pair of a file."""
    sides = (row((1, unit), (4, 5, unit), 1.0), row((1, unit), (6, unit, 8, 9, 2), -1.0))
    return [replace(side, unit=unit, policy=DATA, sampler_logprobs_T=()) for side in sides]


PAIRS = [
    Batch(rows=tuple(one for unit in units for one in pair(unit)) + BATCHES[0].rows[3:])
    # Every pair comes twice, the second time beside others.
    for units in ((1, 2, 3), (4, 5, 6), (7, 8, 9), (1, 6, 9), (2, 4, 7), (3, 5, 8))
]
TWICE = SPEC.optimizer.model_copy(update={"mini_batches": 2})


def spec_of(algorithm: Any, optimizer: OptimizerConfig = SPEC.optimizer) -> RoundSettings:
    return SPEC.model_copy(update={"algorithm": algorithm_from(algorithm), "optimizer": optimizer})


CASES: dict[str, tuple[RoundSettings, Sequence[Batch], dict[str, Any]]] = {
    "full": (SPEC, BATCHES, {}),
    "lora": (SPEC, BATCHES, {"lora": LoraConfig(rank=2, alpha=4.0)}),
    "dropout": (SPEC, BATCHES, {"lora": LoraConfig(rank=2, alpha=4.0, dropout=0.3)}),
    "critic": (spec_of("ppo"), BATCHES, {}),
    "critic_warm_up": (
        spec_of({"name": "ppo", "critic": {"warmup_steps": 2}}, TWICE), BATCHES, {},
    ),
    "dpo": (spec_of({"name": "dpo", "pairs": "file"}, TWICE), PAIRS, {}),
}  # fmt: skip


def stepped(training: Training, batch: Batch) -> dict[str, float]:
    """One step, as a round takes it: engines first get the weights. Without what it cost."""
    training.learner.weights("held")
    return {
        name: value for name, value in training.update(batch).items() if name != "time/update_s"
    }


@pytest.mark.parametrize("case", CASES)
def test_going_on_is_bit_identical(models: dict[str, Path], tmp_path: Path, case: str) -> None:
    """Killed after any of the steps. What does not come back is what rows from a file were told before:
    references are computed again."""
    spec, batches, policy = CASES[case]
    if case in ("lora", "dropout"):
        spec = spec.model_copy(update={"anchors": spec.anchors.model_copy(update={"past": ()})})
    straight = begun(models, tmp_path, spec, **policy)
    expected = [stepped(straight, batch) for batch in batches]

    before = begun(models, tmp_path, spec, **policy)
    assert betas(straight) != betas(before)
    for step, batch in enumerate(batches[:-1], start=1):
        stepped(before, batch)
        kept = tmp_path / f"kept-{step}"
        before.checkpoint(kept, step, identity=IDENTITY, extra={"failed": 2})
        torch.manual_seed(99)
        after = begun(models, tmp_path, spec, **policy)
        found = after.restore(kept, identity=IDENTITY)
        assert found is not None
        assert (found.step, found.extra) == (step, {"failed": 2})
        # Dropout draws from one generator, which `before` needs again as it was.
        drawn = torch.get_rng_state()
        assert [stepped(after, batch) for batch in batches[step:]] == expected[step:]
        assert betas(after) == betas(straight)
        for own, other in zip(trained(after), trained(straight), strict=True):
            assert torch.equal(own, other)
        torch.set_rng_state(drawn)


def test_what_a_file_s_rows_were_told_comes_from_a_cache(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """So that the case above compares a warm cache with a cold one."""
    spec, batches, policy = CASES["dpo"]
    training = begun(models, tmp_path, spec, **policy)
    for batch in batches[:3]:
        training.update(batch)
    assert len(training.learner.reference_cache) == 18
    assert len(begun(models, tmp_path, spec, **policy).learner.reference_cache) == 0


def test_without_the_checkpoint_the_rest_differs(models: dict[str, Path], tmp_path: Path) -> None:
    """The comparison above can fail: fresh moments and counters give other weights."""
    straight, fresh = (begun(models, tmp_path, SPEC) for _ in range(2))
    for batch in BATCHES[:3]:
        straight.update(batch)
    straight.learner.save(tmp_path / "weights")
    fresh.learner.policy.load(tmp_path / "weights")
    for batch in BATCHES[3:]:
        straight.update(batch), fresh.update(batch)
    pairs = zip(trained(straight), trained(fresh), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_only_the_newest_is_kept(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, SPEC)
    folder = tmp_path / "kept"
    assert training.restore(folder, identity=IDENTITY) is None
    for step in (2, 4, 4):
        training.checkpoint(folder, step, identity=IDENTITY)
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]
    assert {path.name for path in (folder / "step-00000004").iterdir()} == {CHECKPOINT, file_of(0)}


def test_a_checkpoint_of_something_else_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, SPEC)
    training.checkpoint(tmp_path / "kept", 1, identity=IDENTITY)
    with pytest.raises(SnapshotError, match="another parent: 'base', not 'other'"):
        training.restore(tmp_path / "kept", identity={**IDENTITY, "parent": "other"})
    with pytest.raises(SnapshotError, match="another round: None, not 'rev'"):
        training.restore(tmp_path / "kept", identity={**IDENTITY, "round": "rev"})
    manifest = next((tmp_path / "kept").glob(f"*/{CHECKPOINT}"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "ranks": 2}))
    with pytest.raises(SnapshotError, match="another ranks: '2', not '1'"):
        training.restore(tmp_path / "kept", identity=IDENTITY)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize("name", [CHECKPOINT, file_of(0)])
def test_a_torn_checkpoint_changes_nothing(
    models: dict[str, Path], tmp_path: Path, damage: Any, name: str
) -> None:
    training = begun(models, tmp_path, SPEC)
    training.update(BATCHES[0])
    training.checkpoint(tmp_path / "kept", 1, identity=IDENTITY)
    training.update(BATCHES[1])
    before, counters = trained(training), (training.steps, betas(training))
    damage(next((tmp_path / "kept").glob(f"*/{name}")))
    with pytest.raises(SnapshotError, match=name.replace(".", r"\.")):
        training.restore(tmp_path / "kept", identity=IDENTITY)
    assert all(torch.equal(a, b) for a, b in zip(before, trained(training), strict=True))
    assert counters == (training.steps, betas(training))


def test_a_checkpoint_of_another_shape_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    small = begun(models, tmp_path, SPEC, lora=LoraConfig(rank=2))
    small.checkpoint(tmp_path / "kept", 1, identity=IDENTITY)
    for other in (LoraConfig(rank=4), None):
        training = begun(models, tmp_path, SPEC, lora=other)
        with pytest.raises(SnapshotError, match="cannot be read"):
            training.restore(tmp_path / "kept", identity=IDENTITY)


def test_what_was_being_written_is_never_read(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, SPEC)
    folder = tmp_path / "kept"
    training.checkpoint(folder, 1, identity=IDENTITY)
    newest = newest_checkpoint(folder)
    assert newest is not None
    newest.rename(folder / "staging")
    assert training.restore(folder, identity=IDENTITY) is None
    training.checkpoint(folder, 2, identity=IDENTITY)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_gradient_checkpointing_changes_no_gradient(
    models: dict[str, Path], tmp_path: Path, lora: LoraConfig | None
) -> None:
    """The same weights after an update, and every layer runs twice."""
    spec = SPEC.model_copy(update={"anchors": AnchorsConfig(new=(), past=(), general=())})
    plain, lean = (
        begun(models, tmp_path, spec, gradient_checkpointing=on, lora=lora) for on in (False, True)
    )
    runs = []
    for training in (plain, lean):
        attention = decoder_layers(training.learner.policy.model)[0].self_attn
        calls: list[int] = []
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        training.update(Batch(rows=BATCHES[0].rows[:3]))
        runs.append(len(calls))
    assert runs[1] == 2 * runs[0] > 0
    for own, other in zip(trained(plain), trained(lean), strict=True):
        assert torch.equal(own, other)
