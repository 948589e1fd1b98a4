"""The learner on a tiny model: gradients that do not depend on padding, splitting or order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from align.algorithms import GRPO
from align.algorithms.rows import Batch, Row
from align.config.campaign import (
    AnchorConfig,
    AnchorsConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RoundSettings,
)
from align.errors import NonFiniteError, ParityError
from align.learner.batching import to_tensors
from align.learner.learner import TOLERANCE, Learner
from align.learner.optimizer import clip_gradients, learning_rate
from align.learner.parity import gap_of
from align.learner.references import References
from align.learner.training import Training
from align.retention.anchors.kl_anchors import BetaController
from align.retention.methods import RetentionMethods
from tests.unit.tiny import VOCABULARY, row, save_model

REFERENCES = References(base="base", parent="base", rounds={"first": "other"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def make(models: dict[str, Path], tmp_path: Path, spec: RoundSettings, **policy: Any) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny", **policy),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e9,
    )
    training = learner.begin(spec, REFERENCES, num_steps=5, seed=0, penalties=RetentionMethods())
    return training


def settings(**changes: Any) -> RoundSettings:
    return RoundSettings(anchors=AnchorsConfig(new=(), past=(), general=())).model_copy(
        update=changes
    )


ROWS = (
    row((1, 2, 3), (4, 5), 1.0),
    row((7,), (8, 9, 10), -1.0),
    row((3, 4), (5, 6, 7, 8), 0.5),
    row((2, 2, 2, 2), (9,), None, "past", "other", "first"),
    row((5, 6), (7, 8), None, "general"),
)


def gradients(training: Training, batch: Batch) -> torch.Tensor:
    """Gradient of one update, before the optimizer moves anything."""
    step, training._optimize = training._optimize, lambda: {}  # type: ignore[method-assign]
    training.update(batch)
    training._optimize = step  # type: ignore[method-assign]
    return torch.cat(
        [p.grad.flatten() for p in training.learner.policy.parameters() if p.grad is not None]
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, as a share of the expected norm."""
    return float((found - expected).norm() / expected.norm())


def doubled(training: Training) -> Training:
    """With the policy and its anchors in float64."""
    training.learner.anchors.hold(["base", "other"])
    for model in (training.learner.policy.model, *training.learner.anchors._models.values()):
        model.double()
    return training


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes up to float32 stays in float64: the norms, and logits before their softmax."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        mean = states.square().mean(-1, keepdim=True)
        return self.weight * (states * torch.rsqrt(mean + self.variance_epsilon))

    single = torch.Tensor.float
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else single(t)
    )


@pytest.mark.parametrize("estimator", ["full", "k1", "k2", "k3"])
def test_micro_batch_split_and_row_order_do_not_matter(
    models: dict[str, Path], tmp_path: Path, estimator: Any
) -> None:
    whole, split = split_and_not(models, tmp_path, estimator)
    expected = gradients(whole, Batch(rows=ROWS))
    assert relative(gradients(split, Batch(rows=ROWS)), expected) < 2e-6
    assert relative(gradients(whole, Batch(rows=ROWS[::-1])), expected) < 2e-6


@pytest.mark.parametrize("estimator", ["full", "k3"])
@pytest.mark.usefixtures("float64")
def test_a_split_costs_rounding_and_nothing_else(
    models: dict[str, Path], tmp_path: Path, estimator: Any
) -> None:
    """In float64 the difference goes down with the precision: it is no approximation."""
    whole, split = map(doubled, split_and_not(models, tmp_path, estimator))
    expected = gradients(whole, Batch(rows=ROWS))
    assert expected.dtype == torch.float64
    assert relative(gradients(split, Batch(rows=ROWS)), expected) < 1e-12


def split_and_not(
    models: dict[str, Path], tmp_path: Path, estimator: Any
) -> tuple[Training, Training]:
    """One pass over everything, and several over a row or two each; under anchors of all classes."""
    anchors = AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=0.1, estimator=estimator),),
        past=(AnchorConfig(to="owner", beta=3.0, estimator=estimator),),
        general=(AnchorConfig(to="base", beta=1.0, estimator=estimator),),
    )
    whole = make(models, tmp_path, settings(anchors=anchors))
    split = make(
        models, tmp_path, settings(anchors=anchors, optimizer=OptimizerConfig(micro_batch_tokens=7))
    )
    return whole, split


def test_update_by_the_definition(models: dict[str, Path], tmp_path: Path) -> None:
    """Against the formula written out over whole padded logits with another model's KL."""
    from transformers import AutoModelForCausalLM

    anchors = AnchorsConfig(new=(), past=(AnchorConfig(to="owner", beta=3.0),), general=())
    training = make(models, tmp_path, settings(anchors=anchors))
    found = gradients(training, Batch(rows=ROWS))

    policy = AutoModelForCausalLM.from_pretrained(models["base"])
    owner = AutoModelForCausalLM.from_pretrained(models["other"])

    def logprobs(model: Any, r: Row) -> torch.Tensor:
        ids = torch.tensor([[*r.prompt_ids, *r.completion_ids]])
        n = len(r.completion_ids)
        return model(ids).logits[0, -n - 1 : -1].log_softmax(-1)

    surrogate = sum(
        r.advantage * logprobs(policy, r).gather(-1, torch.tensor(r.completion_ids)[:, None]).sum()
        for r in ROWS
        if r.advantage is not None
    )
    own, held = logprobs(policy, ROWS[3]), logprobs(owner, ROWS[3]).detach()
    loss = -surrogate / 9 + 3.0 * (own.exp() * (own - held)).sum() / 1
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


def test_zero_advantage_moves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, settings())
    flat = Batch(rows=(row(advantage=0.0), row((7,), (8, 9), 0.0)))
    assert gradients(training, flat).abs().max().item() == 0.0


def test_gradient_raises_what_had_a_positive_advantage(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = make(models, tmp_path, settings(optimizer=OptimizerConfig(lr=1e-3)))
    good, bad = row((1, 2, 3), (4, 5), 1.0), row((1, 2, 3), (8, 9), -1.0)
    before = training.learner.completion_logprobs([good, bad])
    training.update(Batch(rows=(good, bad)))
    after = training.learner.completion_logprobs([good, bad])
    assert sum(after[0]) > sum(before[0])
    assert sum(after[1]) < sum(before[1])


def test_parity_is_checked_on_every_token(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, settings())
    honest = row()
    (logprobs,) = training.learner.completion_logprobs([honest])
    exact = Row(
        **{
            **{f: getattr(honest, f) for f in honest.__slots__},
            "sampler_logprobs_T": tuple(logprobs),
        }
    )
    training.learner.tolerance = 1e-4
    assert training.update(Batch(rows=(exact,)))["parity/max_abs_diff"] < 1e-5
    stale = Row(
        **{**{f: getattr(honest, f) for f in honest.__slots__}, "sampler_logprobs_T": (-1.0, -1.0)}
    )
    training.learner.weights("")
    with pytest.raises(ParityError, match="disagree"):
        training.update(Batch(rows=(stale,)))


@pytest.mark.parametrize(
    ("size", "error", "passes"),
    [(0.5, 0.9e-4, True), (0.5, 1.1e-4, False), (8.0, 7e-4, True), (8.0, 9e-4, False)],
)
def test_logprobs_of_unlikely_tokens_may_differ_in_proportion(
    size: float, error: float, passes: bool
) -> None:
    """float32 rounds a logit of 100 to the fifth decimal; an absolute bound refuses honest engines."""
    sampled = replace(row(), sampler_logprobs_T=(-size, -0.1))
    micro = to_tensors([sampled])
    ours = SimpleNamespace(logprobs_N=torch.tensor([-size - error, -0.1]))
    assert (gap_of(micro, cast(Any, ours), sampled.policy) <= TOLERANCE["float32"]) is passes


def test_a_gradient_that_is_not_finite_moves_nothing_and_fails_in_the_end(
    models: dict[str, Path], tmp_path: Path
) -> None:
    training = make(models, tmp_path, settings())
    before = [p.detach().clone() for p in training.learner.policy.parameters()]
    broken = Batch(rows=(row(advantage=float("inf")),))
    assert training.update(broken)["steps_skipped"] == 1.0
    for old, new in zip(before, training.learner.policy.parameters(), strict=True):
        assert torch.equal(old, new)
    training.update(broken)
    with pytest.raises(NonFiniteError):
        training.update(broken)


@pytest.mark.parametrize(
    ("largest", "expected"), [(2.5, [1.5, 2.0]), (5.0, [3.0, 4.0]), (9.0, [3.0, 4.0])]
)
def test_gradients_are_clipped_by_hand(largest: float, expected: list[float]) -> None:
    """The norm of ``(3, 4)`` is 5, and what is shorter than the limit keeps its length."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight, torch.nn.Parameter(torch.zeros(1))], largest) == 5.0
    torch.testing.assert_close(weight.grad, torch.tensor(expected), atol=1e-5, rtol=0)


def test_divergence_is_zero_from_itself(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, settings())
    assert training.divergence(list(ROWS), "base") == pytest.approx(0.0, abs=1e-6)
    assert training.divergence(list(ROWS), "other") > 0.1


def test_kl_toward_an_anchor_pulls_there(models: dict[str, Path], tmp_path: Path) -> None:
    anchors = AnchorsConfig(new=(AnchorConfig(to="round:first", beta=1.0),), past=(), general=())
    training = make(models, tmp_path, settings(anchors=anchors, optimizer=OptimizerConfig(lr=3e-3)))
    flat = Batch(
        rows=tuple(row((i,), (i + 1, i + 2, i + 3), 0.0) for i in range(1, VOCABULARY - 3))
    )
    start = training.divergence(list(flat.rows), "other")
    for _ in range(10):
        metrics = training.update(flat)
    assert training.divergence(list(flat.rows), "other") < 0.5 * start
    assert metrics["kl/new/round:first"] > 0


def test_lora_starts_at_the_base_and_its_snapshot_is_an_anchor(
    models: dict[str, Path], tmp_path: Path
) -> None:
    lora = LoraConfig(rank=4, alpha=8.0)
    fast = settings(optimizer=OptimizerConfig(lr=1e-2))
    training = make(models, tmp_path, fast, lora=lora)
    rows = [r for r in ROWS if r.advantage is not None]
    assert training.divergence(rows, "base") == pytest.approx(0.0, abs=1e-6)
    for _ in range(5):
        training.update(Batch(rows=ROWS))
    training.learner.policy.save(tmp_path / "adapter")
    assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    models = {**models, "trained": tmp_path / "adapter"}
    training.learner._folder_of = training.learner.anchors._folder_of = lambda snapshot: models[
        snapshot
    ]
    assert training.divergence(rows, "base") > 1e-3
    assert training.divergence(rows, "trained") == pytest.approx(0.0, abs=1e-6)
    trained = training.learner.completion_logprobs(rows)
    training.learner.load("base")
    assert training.divergence(rows, "base") == pytest.approx(0.0, abs=1e-6)
    training.learner.load("trained")
    for again, before in zip(training.learner.completion_logprobs(rows), trained, strict=True):
        assert again == pytest.approx(before, abs=1e-6)
    assert all(
        "lora" in n for n, p in training.learner.policy.model.named_parameters() if p.requires_grad
    )


def test_beta_is_steered_toward_the_target() -> None:
    controller = BetaController(AnchorConfig(to="base", beta=0.1, target=0.05))
    controller.observe(0.10)
    assert controller.beta == pytest.approx(0.1 * 1.10517, rel=1e-4)
    for _ in range(100):
        controller.observe(0.0)
    assert controller.beta == pytest.approx(1e-4)
    fixed = BetaController(AnchorConfig(to="base", beta=0.1))
    fixed.observe(5.0)
    assert fixed.beta == 0.1


def test_rows_without_signal_are_measured_and_leave_the_gradient_alone(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (*ROWS, row((1, 6), (7, 8, 9), 0.0), row((9,), (3,), 0.0))
    anchors = AnchorsConfig(new=(), past=(AnchorConfig(to="owner", beta=3.0),), general=())
    training = make(models, tmp_path, settings(anchors=anchors))
    lean, metrics = gradients(training, Batch(rows=rows)), training.update(Batch(rows=rows))
    monkeypatch.setattr(GRPO, "moves", lambda *_: True)
    whole = make(models, tmp_path, settings(anchors=anchors))
    expected, others = gradients(whole, Batch(rows=rows)), whole.update(Batch(rows=rows))
    torch.testing.assert_close(lean, expected, atol=1e-6, rtol=1e-4)
    for name in ("entropy", "loss/policy", "parity/max_abs_diff", "kl/past/owner"):
        assert metrics[name] == pytest.approx(others[name], rel=1e-4, abs=1e-6)


def test_learning_rate_by_hand() -> None:
    chosen = OptimizerConfig(lr=0.1, warmup_steps=1, decay_from=0.5, final_lr=0.2)
    found = [learning_rate(chosen, step, 5) for step in range(5)]
    assert found == pytest.approx([0.05, 0.1, 0.1, 0.06, 0.02])


def test_stored_answers_are_no_parity_evidence(models: dict[str, Path], tmp_path: Path) -> None:
    """Other weights sampled them: their logprobs say nothing about the last sync."""
    anchors = AnchorsConfig(
        new=(), past=(), general=(AnchorConfig(to="base", beta=1.0, estimator="forward"),)
    )
    training = make(models, tmp_path, settings(anchors=anchors))
    training.learner.tolerance = 1e-4
    stored = Row(
        prompt_ids=(1,), completion_ids=(2, 3), sampler_logprobs_T=(-9.0, -9.0), advantage=None,
        source="general", owner=None, round=None, policy="somebody else",
    )  # fmt: skip
    metrics = training.update(Batch(rows=(stored,)))
    assert metrics["parity/max_abs_diff"] == 0.0
    assert metrics["kl/general/base"] == pytest.approx(0.0, abs=1e-6)


def test_adapters_that_no_engine_reads_are_removed(models: dict[str, Path], tmp_path: Path) -> None:
    training = make(models, tmp_path, settings(), lora=LoraConfig(rank=2))
    for version in ("r/0", "r/1", "r/1", "r/2", "r/3"):
        assert Path(str(training.learner.weights(version).adapter)).is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r-2", "r-3"]
