"""AdamW with moments in 8 bits: their size, their path beside plain AdamW's, and checkpoints."""

from __future__ import annotations

import sys

import pytest
import torch

from align.algorithms.rows import Batch
from align.config.campaign import OptimizerConfig, PolicyConfig, RoundSettings
from align.config.retention.rules import check_methods
from align.errors import UserError
from align.learner.learner import Learner
from align.learner.optimizer import make_optimizer
from align.learner.quantized.moments import eight_bit_adamw
from align.learner.references import References
from align.retention.methods import RetentionMethods
from tests.unit.tiny import row

EIGHT_BIT = OptimizerConfig(lr=1e-2, moments="8bit", weight_decay=0.1)
PLAIN = OptimizerConfig(lr=1e-2, weight_decay=0.1)
BATCHES = [
    Batch(rows=(row((1, 2, 3), (4, 5, step), 1.0), row((7, step), (8, 9, 10), -1.0)))
    for step in range(1, 5)
]


def steps(config, count):
    """Return weights, their path and the optimizer after steps towards a target, from noisy gradients."""
    torch.manual_seed(0)
    target = torch.randn(64, 128)
    weights, small = torch.nn.Parameter(torch.zeros(64, 128)), torch.nn.Parameter(torch.zeros(5))
    optimizer = make_optimizer([weights, small], config)
    losses = []
    for _ in range(count):
        weights.grad = weights.detach() - target + 0.1 * torch.randn(64, 128)
        small.grad = small.detach() - 1.0
        optimizer.step()
        losses.append(float((weights.detach() - target).square().mean()))
    return weights, small, torch.tensor(losses), optimizer


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("align.learner.quantized.library.find_spec", lambda _: None)
    monkeypatch.setattr(
        "align.learner.quantized.moments._optimizer_class",
        sys.modules["align.learner.quantized.moments"]._optimizer_class.__wrapped__,
    )
    with pytest.raises(UserError, match="8bit needs the package bitsandbytes") as caught:
        eight_bit_adamw([])
    assert "keel-align[quantized]" in str(caught.value)


def test_a_method_that_reads_momenta_is_refused():
    from align.config.campaign import RoundConfig

    spec = {
        "name": "a",
        "prompts": "demo://rev",
        "rewards": ["exact_match"],
        "steps": 1,
        "retention": ["mofo"],
        "optimizer": {"moments": "8bit"},
    }
    with pytest.raises(ValueError, match="mofo picks weights by the size of their momenta"):
        check_methods(RoundConfig.model_validate(spec))


def test_older_stores_have_no_such_key():
    assert "moments" not in OptimizerConfig().model_dump()
    assert EIGHT_BIT.model_dump()["moments"] == "8bit"


def test_the_state_is_a_quarter_and_the_path_is_plain_adamws():
    pytest.importorskip("bitsandbytes")
    weights, small, losses, optimizer = steps(EIGHT_BIT, 120)
    plain_weights, plain_small, plain_losses, _ = steps(PLAIN, 120)
    # Two bytes a weight, and two scales of four bytes for every 256 of them; AdamW has eight bytes.
    count = weights.numel()
    saved = optimizer.saved(weights)
    size = sum(saved[key].nbytes for key in ("state1", "state2", "absmax1", "absmax2"))
    assert size == 2 * count + 2 * 4 * count // 256
    assert optimizer.saved(small)["state1"].dtype == torch.float32
    assert torch.allclose(small, plain_small, atol=1e-5)
    # The loss falls from .99 to .14, and the curves are never further apart than 1% of the start.
    assert losses[-1] < 0.15 and (losses - plain_losses).abs().max() < 0.01
    assert not torch.equal(weights, plain_weights)


def test_a_sharded_weight_is_stepped_as_a_plain_one(tmp_path):
    pytest.importorskip("bitsandbytes")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain = torch.nn.Parameter(torch.randn(64, 128))
        parted = torch.nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
        optimizers = [make_optimizer([parameter], EIGHT_BIT) for parameter in (plain, parted)]
        for _ in range(3):
            plain.grad = torch.randn(64, 128)
            parted.grad = distribute_tensor(plain.grad.clone(), mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(parted.detach().to_local(), plain.detach())
        ours, theirs = (o.saved(p) for o, p in zip(optimizers, (plain, parted), strict=True))
        assert ours["state1"].dtype == torch.uint8 and ours["state1"].any()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def begun(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")

    def begin():
        learner = Learner(
            tmp_path / "m",
            PolicyConfig(model="tiny"),
            folder_of=lambda _: tmp_path / "m",
            scratch=tmp_path,
            tolerance=1e9,
        )
        return learner.begin(
            RoundSettings(optimizer=EIGHT_BIT),
            References(base="b", parent="b"),
            num_steps=4,
            seed=0,
            penalties=RetentionMethods(),
        )

    return begin


def test_a_round_that_goes_on_has_the_same_bits(begun, tmp_path):
    whole, first = begun(), begun()
    for batch in BATCHES:
        whole.update(batch)
    for batch in BATCHES[:2]:
        first.update(batch)
    first.checkpoint(tmp_path / "kept", 2, identity={})
    again = begun()
    assert again.restore(tmp_path / "kept", identity={}) is not None
    for batch in BATCHES[2:]:
        again.update(batch)
    pairs = zip(whole.learner.policy.parameters(), again.learner.policy.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    state = next(s for s in again.optimizer.state.values() if s["state1"].dtype == torch.uint8)
    assert state["step"] == 4
