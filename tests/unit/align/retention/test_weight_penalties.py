"""EWC and L2-SP on a real learner: gradients worked by hand, exact resume, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align.algorithms.rows import Batch
from align.config.campaign import (
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.config.retention.methods import EWCConfig, L2SPConfig, RetentionConfig
from align.errors import SnapshotError
from align.learner.learner import Learner
from align.learner.ranks.ranks import SOLO
from align.learner.references import References
from align.learner.training import Training
from align.retention import METHODS
from align.retention.base import RetentionMethod
from align.retention.methods import RetentionMethods, method_class
from align.retention.regularizers.ewc import EWC
from align.retention.regularizers.fisher import diagonal_fisher
from align.retention.regularizers.l2_sp import L2SP
from tests.unit.tiny import row, save_model

NO_ANCHORS = AnchorsConfig(new=(), past=(), general=())
LORA = LoraConfig(rank=2, alpha=4.0)
POLICIES: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": LORA}}
ROWS = (row((1, 2, 3), (4, 5, 6), 1.0), row((7, 2), (8, 9, 10), -1.0), row((3, 4), (5, 6), 0.5))
STILL = (row((1, 2, 3), (4, 5), 0.0),)
"""A row whose advantage is zero: the algorithm gives no gradient at all."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_model(folder / name, seed=seed) for seed, name in enumerate(("base", "other"))
    }


def begun(
    models: Mapping[str, Path],
    folder: Path,
    *methods: RetentionConfig,
    artifacts: Mapping[str, Path] | None = None,
    parent: str = "base",
    **policy: Any,
) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", **policy),
        folder_of=lambda snapshot: models[snapshot],
        scratch=folder,
        tolerance=1e9,
    )
    return again(learner, *methods, artifacts=artifacts, parent=parent)


def again(
    learner: Learner,
    *methods: RetentionConfig,
    artifacts: Mapping[str, Path] | None = None,
    parent: str = "base",
) -> Training:
    spec = RoundSettings(
        anchors=NO_ANCHORS, retention=methods, optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=1e9)
    )
    return learner.begin(
        spec,
        References(base="base", parent=parent),
        num_steps=6,
        seed=5,
        penalties=RetentionMethods(artifacts=artifacts or {}),
    )


def write_fisher(training: Training, path: Path, value: float) -> Path:
    """The same importance for every trained weight."""
    from safetensors.torch import save_file

    named = training.learner.policy.named_parameters()
    save_file({name: torch.full_like(p, value).detach() for name, p in named.items()}, path)
    return path


def trained(training: Training) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in training.learner.policy.named_parameters().items()}


def shift(training: Training, by: float) -> tuple[str, Tensor]:
    """Move one weight of the policy; returns its name and the tensor it is in."""
    name, parameter = next(iter(training.learner.policy.named_parameters().items()))
    with torch.no_grad():
        parameter.view(-1)[3] += by
    return name, parameter


# numbers worked by hand


def test_the_gradient_of_ewc_is_lambda_times_fisher_times_distance() -> None:
    """Two weights: lambda = 3, F = (2, 0.5), theta - theta* = (0.5, -2)."""
    view: Any = SimpleNamespace()
    method = EWC(EWCConfig(strength=3.0), view)
    method._importance = {"w": torch.tensor([2.0, 0.5])}
    method._centre = {"w": torch.tensor([1.0, 1.0])}
    weight = torch.tensor([1.5, -1.0], requires_grad=True)
    (term,) = method.parameter_penalty({"w": weight})
    term.backward()
    assert float(term.detach()) == pytest.approx(3 / 2 * (2 * 0.25 + 0.5 * 4))
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([3 * 2 * 0.5, 3 * 0.5 * -2])


def test_the_gradient_of_l2_sp_is_alpha_times_distance() -> None:
    view: Any = SimpleNamespace()
    method = L2SP(L2SPConfig(alpha=0.5), view)
    method._start, method._factors = {"w": torch.tensor([1.0, 1.0])}, ()
    weight = torch.tensor([1.5, -1.0], requires_grad=True)
    (term,) = method.parameter_penalty({"w": weight})
    term.backward()
    assert float(term.detach()) == pytest.approx(0.25 * (0.25 + 4))
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([0.25, -1.0])


def test_the_penalty_of_an_adapter_is_that_of_its_update_in_full() -> None:
    """|s B A - s B_0 A_0|^2 and its gradients, against the product written out."""
    torch.manual_seed(0)
    view: Any = SimpleNamespace()
    method = L2SP(L2SPConfig(alpha=0.7), view)
    method._factors = (("a", "b", 2.0),)
    method._start = {"a": torch.randn(2, 5), "b": torch.randn(4, 2)}
    weights = {
        "a": torch.randn(2, 5, requires_grad=True),
        "b": torch.randn(4, 2, requires_grad=True),
    }
    (term,) = method.parameter_penalty(weights)
    actual = torch.autograd.grad(term, [weights["a"], weights["b"]])
    update = 2.0 * (weights["b"] @ weights["a"] - method._start["b"] @ method._start["a"])
    full = 0.35 * update.square().sum()
    expected = torch.autograd.grad(full, [weights["a"], weights["b"]])
    torch.testing.assert_close(term, full)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_fisher_is_the_mean_of_squared_gradients_of_each_sample(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """Against the model's own logits, at a temperature of 0.7."""
    training = begun(models, tmp_path, **POLICIES[policy])
    model, named = training.learner.policy.model, training.learner.policy.named_parameters()
    if policy == "lora":
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(0.1 if "lora_B" in name else 0.0)
    expected = {name: torch.zeros_like(p) for name, p in named.items()}
    for sample in ROWS:
        tokens = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logits = model(input_ids=tokens, use_cache=False).logits[0].float() / 0.7
        logprobs = logits.log_softmax(-1)
        start = len(sample.prompt_ids) - 1
        total = sum(logprobs[start + i, t] for i, t in enumerate(sample.completion_ids))
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)  # type: ignore[arg-type]
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                expected[name] += gradient.square() / len(ROWS)
    actual = diagonal_fisher(training.learner.policy, ROWS, 0.7, SOLO)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-6)
    assert any(tensor.any() for tensor in actual.values())


def test_the_running_fisher_decays_by_gamma(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = EWCConfig(strength=1.0, gamma=0.5)
    training = begun(models, tmp_path, config)
    training.write_artifacts(tmp_path / "first", ROWS)
    own = load_file(tmp_path / "first" / "ewc.safetensors")
    earlier = write_fisher(training, tmp_path / "earlier.safetensors", 8.0)
    training = again(training.learner, config, artifacts={"ewc": earlier})
    training.write_artifacts(tmp_path / "second", ROWS)
    actual = load_file(tmp_path / "second" / "ewc.safetensors")
    assert actual.keys() == own.keys() == trained(training).keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, 0.5 * torch.full_like(tensor, 8.0) + own[name])


# in a learner


@pytest.mark.parametrize("policy", POLICIES)
def test_a_learner_steps_along_the_penalty_of_ewc(
    models: dict[str, Path], tmp_path: Path, policy: str
) -> None:
    """One weight is moved by 0.5 and nothing else teaches: |gradient| = lambda F 0.5, and back it goes."""
    training = begun(models, tmp_path, **POLICIES[policy])
    fisher = write_fisher(training, tmp_path / "ewc.safetensors", 2.0)
    training = again(training.learner, EWCConfig(strength=3.0), artifacts={"ewc": fisher})
    metrics = training.update(Batch(rows=STILL))
    assert (metrics["grad_norm"], metrics["retention/ewc"]) == (0.0, 0.0)
    before = float(shift(training, 0.5)[1].detach().view(-1)[3])
    metrics = training.update(Batch(rows=STILL))
    assert metrics["grad_norm"] == pytest.approx(3 * 2 * 0.5, rel=1e-4)
    assert metrics["retention/ewc"] == pytest.approx(3 / 2 * 2 * 0.25, rel=1e-4)
    after = float(
        next(iter(training.learner.policy.named_parameters().values())).detach().view(-1)[3]
    )
    assert before - 1.1e-3 < after < before - 1e-4


@pytest.mark.parametrize("to", ["parent", "base"])
def test_a_learner_steps_along_the_penalty_of_l2_sp(
    models: dict[str, Path], tmp_path: Path, to: str
) -> None:
    """The round starts at another model: its distance from the base is that of the two files."""
    training = begun(models, tmp_path, L2SPConfig(alpha=2.0, to=to), parent="other")  # type: ignore[arg-type]
    shift(training, 0.5)
    here, metrics = trained(training), training.update(Batch(rows=STILL))
    training.learner.load(to if to == "base" else "other")
    there = trained(training)
    square = sum(float((here[name] - there[name]).square().sum()) for name in here)
    assert metrics["retention/l2_sp"] == pytest.approx(square, rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(2 * square**0.5, rel=1e-4)
    assert (square == pytest.approx(0.25, rel=1e-3)) == (to == "parent")


def test_an_adapter_is_drawn_to_the_base_by_its_update_alone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Factors A of a fresh adapter are random, and cost nothing while B is zero."""
    training = begun(models, tmp_path, L2SPConfig(alpha=2.0, to="base"), lora=LORA)
    metrics = training.update(Batch(rows=STILL))
    assert (metrics["retention/l2_sp"], metrics["grad_norm"]) == (0.0, 0.0)
    with torch.no_grad():
        for name, parameter in training.learner.policy.named_parameters().items():
            parameter.add_(0.1 if "lora_B" in name else 0.0)
    square = sum(
        float(module.get_delta_weight("policy").detach().square().sum())
        for module in training.learner.policy.model.modules()
        if hasattr(module, "get_delta_weight")
    )
    assert square > 0
    assert training.update(Batch(rows=STILL))["retention/l2_sp"] == pytest.approx(square, rel=1e-4)


def test_a_penalty_holds_weights_near_their_centre(models: dict[str, Path], tmp_path: Path) -> None:
    distances = []
    for strength in (1e-6, 1e3):
        training = begun(models, tmp_path)
        fisher = write_fisher(training, tmp_path / "ewc.safetensors", 1.0)
        training = again(training.learner, EWCConfig(strength=strength), artifacts={"ewc": fisher})
        start = trained(training)
        for _ in range(5):
            training.update(Batch(rows=ROWS))
        end = trained(training)
        distances.append(sum(float((end[n] - start[n]).square().sum()) for n in start))
    assert distances[1] < distances[0] / 4


def test_the_centre_is_the_parent_wherever_the_policy_begins(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A repair begins at the failed candidate, and is held to the parent."""
    from align.learner.references import Toward

    training = begun(models, tmp_path)
    spec = RoundSettings(anchors=NO_ANCHORS, retention=(L2SPConfig(alpha=2.0),))
    toward = Toward(snapshot="other", share=1.0)
    training = training.learner.begin(
        spec, References(base="base", parent="base", beginning=toward), num_steps=2, seed=1,
        penalties=RetentionMethods(),
    )  # fmt: skip
    here = trained(training)
    metrics = training.update(Batch(rows=STILL))
    training.learner.load("base")
    there = trained(training)
    square = sum(float((here[name] - there[name]).square().sum()) for name in here)
    assert metrics["retention/l2_sp"] == pytest.approx(square, rel=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["ewc", "l2_sp"])
def test_a_round_goes_on_from_a_checkpoint_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, policy: str, name: str
) -> None:
    identity = {"config": "abc"}
    method = {"ewc": EWCConfig(strength=50.0), "l2_sp": L2SPConfig(alpha=0.5)}[name]

    def fresh() -> Training:
        training = begun(models, tmp_path, **POLICIES[policy])
        fisher = write_fisher(training, tmp_path / "ewc.safetensors", 2.0)
        training = again(training.learner, method, artifacts={"ewc": fisher})
        return training

    straight = fresh()
    for _ in range(2):
        straight.update(Batch(rows=ROWS))
    straight.checkpoint(tmp_path / "kept", 2, identity=identity)
    expected = [straight.update(Batch(rows=ROWS)) for _ in range(2)]
    resumed = fresh()
    actual = resumed.restore(tmp_path / "kept", identity=identity)
    assert actual is not None and actual.step == 2
    for metrics in expected:
        assert {**resumed.update(Batch(rows=ROWS)), "time/update_s": 0} == {
            **metrics, "time/update_s": 0,
        }  # fmt: skip
    assert expected[0][f"retention/{name}"] > 0
    ours, theirs = trained(straight), trained(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_fisher_of_other_weights_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    training = begun(models, tmp_path, lora=LoraConfig(rank=4, alpha=4.0))
    fisher = write_fisher(training, tmp_path / "ewc.safetensors", 1.0)
    with pytest.raises(SnapshotError, match=r"does not fit the policy.*lora_A"):
        begun(models, tmp_path, EWCConfig(strength=1.0), artifacts={"ewc": fisher}, lora=LORA)


def test_a_method_may_change_the_gradients_of_a_step(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """After every penalty was added, and before gradients are clipped and their norm is reported."""

    class Halved(RetentionMethod[RetentionConfig]):
        acts_on_weights = True

        def project(self, gradients: Mapping[str, Tensor]) -> None:
            for gradient in gradients.values():
                gradient.mul_(0.5)

        def parameter_penalty(self, weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
            name = next(iter(weights))
            yield 6.0 * weights[name].view(-1)[0]

    training = begun(models, tmp_path)
    training = training.learner.begin(
        RoundSettings(anchors=NO_ANCHORS), References(base="base", parent="base"), num_steps=1,
        seed=0, penalties=lambda view: [Halved(RetentionConfig(name="halved"), view)],
    )  # fmt: skip
    assert training.update(Batch(rows=STILL))["grad_norm"] == pytest.approx(3.0)


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_has_settings_of_its_name(name: str) -> None:
    from align.config.retention.registry import RETENTION

    assert RETENTION.keys() == METHODS.keys()
    assert issubclass(method_class(name), RetentionMethod)
    assert RETENTION[name].model_fields["name"].default == name
