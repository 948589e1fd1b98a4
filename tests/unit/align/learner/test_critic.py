"""The critic on a tiny model: of its own and on the policy's hidden states, alone and in the learner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.algorithms.policy_gradient.actor_critic.ppo import PPO, CriticConfig
from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.learner.batching import to_tensors
from align.learner.heads.critic import Critic
from align.learner.learner import Learner
from align.learner.references import References
from align.learner.training import Training
from align.retention.methods import RetentionMethods
from rollouts.errors import RunError, UserError
from tests.unit.tiny import row, save_model

CRITICS = {
    "own": CriticConfig(lr=1e-2),
    "shared": CriticConfig(model="shared", lr=1e-2),
    "shared_gradient": CriticConfig(model="shared", lr=1e-2, shared_gradient=True),
}
ROWS = (
    row((1, 2, 3), (4, 5), 1.0),
    row((7,), (8, 9, 10), -1.0),
    row((3, 4), (5, 6, 7, 8), 0.5),
    row((2, 2, 2, 2), (9,), None, "past", "other", "first"),
)
HELD = AnchorsConfig(new=(), past=(AnchorConfig(to="owner", beta=3.0),), general=())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}
    for folder in found.values():
        write_tokenizer(folder, {"a": 0, "b": 1})
    return found


def write_tokenizer(
    folder: Path, vocabulary: Any, added: list[dict[str, Any]] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"model": {"vocab": vocabulary}, "added_tokens": added or []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def make(
    models: dict[str, Path],
    tmp_path: Path,
    critic: CriticConfig,
    *,
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3),  # noqa: B008
    lora: LoraConfig | None = None,
    **ppo: Any,
) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", lora=lora),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    spec = RoundSettings(algorithm=PPO(critic=critic, **ppo), anchors=HELD, optimizer=optimizer)
    references = References(base="base", parent="base", rounds={"first": "other"})
    training = learner.begin(spec, references, num_steps=100, seed=0, penalties=RetentionMethods())
    return training


def critic_of(training: Training) -> Critic:
    assert training.critic is not None
    return training.critic


def gradients(training: Training, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the policy and of the critic in one update, before the optimizer moves anything."""
    step, training._optimize = training._optimize, dict  # type: ignore[method-assign,assignment]
    training.update(batch)
    training._optimize = step  # type: ignore[method-assign]
    sides = training.learner.policy.parameters(), critic_of(training).parameters()
    policy, critic = (torch.cat([p.grad.flatten() for p in side]) for side in sides)  # type: ignore[union-attr]
    return policy, critic


def tilt(training: Training) -> None:
    """A head of zeros, as it is at first, hides what lies below it from the gradient."""
    with torch.no_grad():
        critic_of(training).head.weight.copy_(torch.linspace(-0.2, 0.2, 32)[None])


def values_of(training: Training, *rows: Row) -> list[float]:
    micro = to_tensors(rows).to(training.learner.device)
    return critic_of(training).values(micro, training.objective.outputs(micro)).tolist()


def weights(training: Training) -> list[torch.Tensor]:
    return [p.detach().clone() for p in training.learner.policy.parameters()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("kind", CRITICS)
def test_micro_batch_split_and_row_order_do_not_matter(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    whole = make(models, tmp_path, CRITICS[kind])
    small = OptimizerConfig(lr=1e-3, micro_batch_tokens=7)
    split = make(models, tmp_path, CRITICS[kind], optimizer=small)
    tilt(whole)
    tilt(split)
    policy, critic = gradients(whole, Batch(rows=ROWS))
    assert policy.abs().max() > 1e-2 and critic.abs().max() > 1e-2
    for other in (gradients(split, Batch(rows=ROWS)), gradients(whole, Batch(rows=ROWS[::-1]))):
        torch.testing.assert_close(other[0], policy, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(other[1], critic, atol=2e-5, rtol=1e-3)


def test_values_are_of_the_state_before_each_token(models: dict[str, Path], tmp_path: Path) -> None:
    """A value knows the tokens so far and not the one to come."""
    training = make(models, tmp_path, CRITICS["own"])
    tilt(training)

    def values(*completion: int) -> list[float]:
        return values_of(training, row((1, 2), completion))

    first, second, third = values(4, 5, 6)
    assert values(4, 5, 9) == pytest.approx([first, second, third])
    changed = values(4, 8, 6)
    assert changed[:2] == pytest.approx([first, second])
    assert abs(changed[2] - third) > 1e-3


@pytest.mark.parametrize("kind", CRITICS)
def test_the_critic_learns_a_constant_reward(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    training = make(
        models, tmp_path, CRITICS[kind], lam=1.0, optimizer=OptimizerConfig(lr=1e-5, epochs=2)
    )
    constant = Batch(rows=(row((1, 2, 3), (4, 5), 1.5), row((7,), (8, 9, 10), 1.5)))
    first = training.update(constant)
    for _ in range(40):
        last = training.update(constant)
    assert first["loss/value"] > 0.5
    assert last["loss/value"] < 0.01 * first["loss/value"]
    assert values_of(training, *constant.rows) == pytest.approx([1.5] * 5, abs=0.15)


def test_an_own_critic_tells_rewards_apart(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, CRITICS["own"], lam=1.0, optimizer=OptimizerConfig(lr=1e-6))
    batch = Batch(rows=(row((1, 2, 3), (4, 5), 1.0), row((7,), (8, 9, 10), -1.0)))
    assert training.update(batch)["value/explained_variance"] < 0.1
    for _ in range(40):
        last = training.update(batch)
    assert last["value/explained_variance"] > 0.9


@pytest.mark.parametrize("kind", CRITICS)
def test_warm_up_leaves_the_policy_alone(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    critic = CRITICS[kind].model_copy(update={"warmup_steps": 2})
    stepping = OptimizerConfig(lr=1e-3, epochs=2, weight_decay=0.1)
    training = make(models, tmp_path, critic, optimizer=stepping)
    before = weights(training)
    values = [critic_of(training).head.weight.detach().clone()]
    for _ in range(2):
        training.update(Batch(rows=ROWS))
        assert equal(weights(training), before)
        values.append(critic_of(training).head.weight.detach().clone())
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
    training.update(Batch(rows=ROWS))
    assert not equal(weights(training), before)


def test_what_engines_hold_stays_known_while_only_the_critic_learns(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = make(models, tmp_path, CRITICS["own"].model_copy(update={"warmup_steps": 1}))
    training.learner.weights("first/0")
    training.update(Batch(rows=ROWS))
    assert training.learner.fresh and training.learner.version == "first/0"
    training.update(Batch(rows=ROWS))
    assert not training.learner.fresh


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_critic_never_touches_the_policy(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Neither by its gradient nor, where that is large, by way of the clipping."""
    found = []
    for weight in (0.1, 1e4):
        training = make(models, tmp_path, CRITICS[kind], value_weight=weight)
        metrics = training.update(Batch(rows=ROWS))
        found.append((weights(training), metrics["grad_norm"]))
    assert metrics["critic/grad_norm"] > 100 * metrics["grad_norm"]
    assert found[0][1] == pytest.approx(found[1][1])
    assert equal(found[0][0], found[1][0])


def test_a_shared_gradient_adds_the_value_loss_to_the_policys(
    models: dict[str, Path], tmp_path: Path
) -> None:
    def gradient(kind: str, weight: float) -> torch.Tensor:
        training = make(models, tmp_path, CRITICS[kind], value_weight=weight)
        tilt(training)
        return gradients(training, Batch(rows=ROWS))[0]

    alone = gradient("shared", 0.1)
    added = gradient("shared_gradient", 0.1) - alone
    assert added.abs().max() > 1e-3
    twice = gradient("shared_gradient", 0.2) - alone
    torch.testing.assert_close(twice, 2 * added, atol=1e-5, rtol=1e-3)


def test_the_schedule_scales_both_learning_rates(models: dict[str, Path], tmp_path: Path) -> None:
    rising = OptimizerConfig(lr=1e-3, warmup_steps=3)
    training = make(models, tmp_path, CRITICS["own"], optimizer=rising)
    for share in (0.25, 0.5, 0.75, 1.0):
        training.update(Batch(rows=ROWS))
        rates = [group["lr"] for group in training.optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * share, 1e-2 * share])


def test_a_round_begins_with_a_fresh_critic(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, CRITICS["own"])
    start = {name: t.clone() for name, t in critic_of(training).named_tensors().items()}
    training.update(Batch(rows=ROWS))
    assert not torch.equal(critic_of(training).named_tensors()["head.bias"], start["head.bias"])
    training = training.learner.begin(
        training.spec,
        training.objective.references,
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    for name, tensor in critic_of(training).named_tensors().items():
        assert torch.equal(tensor, start[name]), name
    training = training.learner.begin(
        RoundSettings(),
        training.objective.references,
        num_steps=5,
        seed=0,
        penalties=RetentionMethods(),
    )
    assert training.critic is None and len(training.optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_critic_goes_on_where_it_was_saved(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    training = make(models, tmp_path, CRITICS[kind])
    training.update(Batch(rows=ROWS))
    critic_of(training).save(tmp_path / "critic")
    again = make(models, tmp_path, CRITICS[kind])
    held = critic_of(again).parameters()
    critic_of(again).load(tmp_path / "critic")
    expected = critic_of(training).named_tensors()
    found = critic_of(again).named_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for parameter, same in zip(held, again.optimizer.param_groups[1]["params"], strict=True):
        assert parameter is same

    other = make(models, tmp_path, CRITICS["shared" if kind == "own" else "own"])
    with pytest.raises(RunError, match="do not fit the critic"):
        critic_of(other).load(tmp_path / "critic")


def test_an_own_critic_is_the_named_folders_body_without_its_head(
    models: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    training = make(models, tmp_path, CriticConfig(model=str(models["other"])))
    stored = load_file(models["other"] / "model.safetensors")
    tensors = critic_of(training).named_tensors()
    body = {name.removeprefix("body."): t for name, t in tensors.items() if name[:5] == "body."}
    assert body.keys() == {name.removeprefix("model.") for name in stored}
    assert all(torch.equal(body[name.removeprefix("model.")], t) for name, t in stored.items())
    assert {name for name in tensors if name[:5] == "head."} == {"head.weight", "head.bias"}


def test_a_reward_model_lends_its_body(models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(models["base"], num_labels=1, pad_token_id=0)
    judge = LlamaForSequenceClassification(config)
    judge.save_pretrained(tmp_path / "judge")
    write_tokenizer(tmp_path / "judge", {"a": 0, "b": 1})
    training = make(models, tmp_path, CriticConfig(model=str(tmp_path / "judge")))
    tensors = critic_of(training).named_tensors()
    for name, parameter in judge.model.named_parameters():
        assert torch.equal(tensors[f"body.{name}"], parameter), name
    assert not tensors["head.weight"].any()


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_an_adapter_policy_has_a_critic(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """On the adapted hidden states, or a copy of the base even where the parent is an adapter."""
    lora = LoraConfig(rank=4, alpha=8.0)
    training = make(models, tmp_path, CRITICS[kind], lora=lora)
    training.update(Batch(rows=ROWS))
    training.learner.policy.save(tmp_path / "adapter")
    training.learner._folder_of = {**models, "trained": tmp_path / "adapter"}.__getitem__
    references = References(base="base", parent="trained", rounds={"first": "other"})
    training = training.learner.begin(
        training.spec, references, num_steps=5, seed=0, penalties=RetentionMethods()
    )
    before = weights(training)
    metrics = training.update(Batch(rows=ROWS))
    assert metrics["critic/grad_norm"] > 0 and not equal(weights(training), before)
    assert all("lora" not in name for name in critic_of(training).named_tensors())


def test_the_learner_asks_before_it_loads_a_critic(models: dict[str, Path], tmp_path: Path) -> None:
    write_tokenizer(save_model(tmp_path / "strange", 2), {"b": 0, "a": 1})
    with pytest.raises(UserError, match="another tokenizer"):
        make(models, tmp_path, CriticConfig(model=str(tmp_path / "strange")))
