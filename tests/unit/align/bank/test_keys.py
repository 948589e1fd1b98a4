"""Keys of a bank: similarity by groups, masks, beginnings and training, with numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.bank.keys import (
    average_keys,
    centrifugal_loss,
    group_similarity,
    key_loss,
    orthogonal_keys,
    train_keys,
)
from align.config.policy import BankConfig


def test_similarity_is_the_cosine_of_each_group() -> None:
    """Query (3, 4 | 1, 0) in two groups against the key (4, 3 | 0, 2): 24/25 and 0."""
    queries_BC = torch.tensor([[3.0, 4.0, 1.0, 0.0]])
    keys_GPC = torch.tensor([[[4.0, 3.0]], [[0.0, 2.0]]])
    similarity_BGP = group_similarity(queries_BC, keys_GPC)
    torch.testing.assert_close(similarity_BGP, torch.tensor([[[0.96], [0.0]]]))


def test_similarity_knows_no_length_and_no_neighbours() -> None:
    queries_BC, keys_GPC = torch.randn(5, 12), torch.randn(3, 4, 4)
    whole = group_similarity(queries_BC, keys_GPC)
    torch.testing.assert_close(group_similarity(7 * queries_BC, 0.1 * keys_GPC), whole)
    torch.testing.assert_close(group_similarity(queries_BC[2:3], keys_GPC), whole[2:3])


def test_average_keys_are_means_of_interleaved_prompts() -> None:
    """Of four queries the first key has the mean of 0 and 2, the second of 1 and 3, cut into two groups."""
    queries_BC = torch.tensor([[0.0, 0.0], [1.0, 2.0], [4.0, 8.0], [3.0, 4.0]])
    keys_GPC = average_keys(queries_BC, 2, 2)
    assert keys_GPC.tolist() == [[[2.0], [2.0]], [[4.0], [3.0]]]


def test_fewer_prompts_than_keys_serve_several_times() -> None:
    keys_GPC = average_keys(torch.tensor([[1.0, 2.0]]), 3, 1)
    assert keys_GPC.tolist() == [[[1.0, 2.0]] * 3]


def test_orthogonal_keys_are_orthogonal_in_every_group() -> None:
    keys_GPC = orthogonal_keys(12, 6, 3, torch.Generator().manual_seed(0))
    assert keys_GPC.shape == (3, 6, 4)
    gram = keys_GPC[:, :4] @ keys_GPC[:, :4].transpose(1, 2)
    torch.testing.assert_close(gram, torch.eye(4).expand(3, 4, 4))


def test_the_nearest_keys_of_each_group_are_drawn() -> None:
    """Two groups: the two largest are .9 and .5, and .7 and .3; their mean is .6."""
    similarity_BGP = torch.tensor([[[0.9, 0.1, 0.5], [0.3, 0.7, 0.2]]])
    generator = torch.Generator().manual_seed(0)
    assert math.isclose(float(key_loss(similarity_BGP, 2, 0.0, generator)), -0.6, abs_tol=1e-6)


def test_a_masked_key_gets_no_gradient() -> None:
    similarity_BGP = torch.rand(64, 2, 4).requires_grad_()
    key_loss(similarity_BGP, 1, 0.25, torch.Generator().manual_seed(1)).backward()  # type: ignore[no-untyped-call]
    drawn = torch.rand(similarity_BGP.shape, generator=torch.Generator().manual_seed(1))
    assert similarity_BGP.grad is not None
    chosen = similarity_BGP.grad != 0
    all_masked = (drawn < 0.25).all(-1, keepdim=True)
    assert not (chosen & (drawn < 0.25) & ~all_masked).any()
    assert (chosen.sum(-1) == 1).all()
    # Without masks the nearest key of a group always wins; with them others do, too.
    assert (similarity_BGP.argmax(-1) != chosen.int().argmax(-1)).any()


def test_the_centrifugal_term_is_the_mean_cosine_with_earlier_keys() -> None:
    """Keys (1, 0) against (0, 1) and (1, 1): 0 and 1/sqrt(2)."""
    loss = centrifugal_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))
    assert math.isclose(float(loss), 0.5 / math.sqrt(2), rel_tol=1e-6)


def prompts_around(direction: int, count: int = 40) -> torch.Tensor:
    noise = torch.randn(count, 8, generator=torch.Generator().manual_seed(direction))
    return 0.2 * noise + torch.eye(8)[direction] + torch.eye(8)[direction + 4]


@pytest.mark.parametrize("init", ["average", "orthogonal"])
def test_trained_keys_come_nearer_to_their_prompts(init: str) -> None:
    queries = prompts_around(1)
    settings = {"keys": 2, "top_k": 2, "groups": 2, "init": init, "lr": 0.05}
    before, after = (
        train_keys(queries, BankConfig.model_validate({**settings, "epochs": n}), seed=3)
        for n in (0, 6)
    )
    assert group_similarity(queries, after).mean() > group_similarity(queries, before).mean()
    again = train_keys(queries, BankConfig.model_validate({**settings, "epochs": 6}), seed=3)
    assert torch.equal(after, again)


@pytest.mark.parametrize("scale", [1e-2, 30.0, 4096.0])
def test_keys_do_not_depend_on_how_large_an_encoder_writes_its_queries(scale: float) -> None:
    config = BankConfig(keys=2, groups=2)
    keys, scaled = (
        train_keys(factor * prompts_around(1), config, seed=3) for factor in (1.0, scale)
    )
    assert torch.allclose(keys, scaled, atol=1e-5)


def test_the_centrifugal_term_pushes_new_keys_off_earlier_ones() -> None:
    old = train_keys(prompts_around(1), BankConfig(keys=2, top_k=2, groups=2), seed=0)
    near, far = (
        train_keys(
            prompts_around(2),
            BankConfig(keys=2, top_k=2, groups=2, lr=0.05, centrifugal=weight),
            seed=0,
            old_GOC=old,
        )
        for weight in (0.0, 1.0)
    )
    assert centrifugal_loss(far, old) < centrifugal_loss(near, old)
