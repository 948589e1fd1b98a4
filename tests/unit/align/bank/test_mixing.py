"""Mixing weights of increments and their retrieval by the prompt, with numbers worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from align.bank.encoder import EncoderIdentity, states_after
from align.bank.mixing import mixing_weights
from align.bank.router import Queries, Router
from align.data.demo import BASE_MODEL
from rollouts.types import Increment

SIMILARITY_BGP = torch.tensor(
    [[[0.8, 0.2, 0.1], [0.4, 0.2, 0.1]], [[0.0, 0.3, 0.6], [0.0, 0.3, 0.6]]]
)
"""Means over the groups: .6, .2, .1 and 0, .3, .6."""


@pytest.mark.parametrize(
    ("top_k", "weights"),
    [
        (1, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        (2, [[0.75, 0.25, 0.0], [0.0, 1 / 3, 2 / 3]]),
        (3, [[2 / 3, 2 / 9, 1 / 9], [0.0, 1 / 3, 2 / 3]]),
    ],
)
def test_the_nearest_increments_share_a_prompt(top_k: int, weights: list[list[float]]) -> None:
    torch.testing.assert_close(mixing_weights(SIMILARITY_BGP, top_k), torch.tensor(weights))


def test_under_a_batch_all_prompts_have_the_weights_of_the_mean() -> None:
    """The means over both prompts are .3, .25, .35: the nearest two share 7 to 6."""
    weights_BP = mixing_weights(SIMILARITY_BGP, 2, per_batch=True)
    torch.testing.assert_close(weights_BP, torch.tensor([[6 / 13, 0.0, 7 / 13]] * 2))


def test_a_prompt_that_no_key_is_near_has_the_nearest_one() -> None:
    weights_BP = mixing_weights(torch.tensor([[[-0.5, -0.1]]]), 2)
    torch.testing.assert_close(weights_BP, torch.tensor([[0.0, 1.0]]))


class Compass:
    """An encoder whose query of a prompt is a unit vector, by the prompt's first token."""

    identity = EncoderIdentity(kind="policy", sha256="0", width=4)

    def __init__(self) -> None:
        self.encoded: list[tuple[int, ...]] = []

    def encode(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        self.encoded += prompts
        return torch.eye(4)[[prompt[0] for prompt in prompts]]


KEYS = [
    ("north", torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]]])),
    ("east", torch.tensor([[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]])),
]


def test_a_prompt_retrieves_the_increments_of_its_keys() -> None:
    encoder = Compass()
    router = Router(Queries(encoder), KEYS, top_k=1)
    assert router.mixes([(0, 7), (2, 7), (0, 7), (1,)]) == [
        (Increment("north", 0, pytest.approx(1.0)),),
        (Increment("east", 1, pytest.approx(1.0)),),
        (Increment("north", 0, pytest.approx(1.0)),),
        (Increment("east", 0, pytest.approx(1.0)),),
    ]
    router.mixes([(0, 7), (2, 7)])
    assert encoder.encoded == [(0, 7), (2, 7), (1,)], "a prompt is encoded once"


def test_the_heaviest_increment_comes_first() -> None:
    (mix,) = Router(Queries(Compass()), KEYS, top_k=2).mixes([(0,)])
    assert [(i.adapter, i.number) for i in mix] == [("north", 0), ("north", 1)]
    assert mix[0].weight > mix[1].weight > 0
    assert sum(i.weight for i in mix) == pytest.approx(1.0)


def test_without_keys_the_base_answers() -> None:
    assert Router(Queries(Compass()), [], top_k=2).mixes([(0,), ()]) == [(), ()]


@pytest.mark.parametrize("layer", [1, 2])
def test_states_after_a_layer_are_those_of_a_whole_pass(layer: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    tokens_1T = torch.tensor([[10, 15, 3, 1]])
    with torch.no_grad():
        whole = model(input_ids=tokens_1T, output_hidden_states=True).hidden_states[layer]
        states = states_after(model.get_decoder(), model.model.layers[layer - 1], tokens_1T)
        again = model(input_ids=tokens_1T, output_hidden_states=True).hidden_states[layer]
    assert torch.equal(states, whole)
    assert torch.equal(again, whole), "the layer is left as it was"
