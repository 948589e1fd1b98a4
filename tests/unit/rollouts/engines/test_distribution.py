"""Distributions that tokens are drawn from, against values worked by hand, vLLM's code and frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from rollouts.engines.decoding.distribution import SamplingColumns, draw, sampled_logprobs
from rollouts.types import Sampling

PROBABILITIES = (0.4, 0.3, 0.2, 0.1)
CPU = torch.device("cpu")


def kept(**bounds: float) -> list[float]:
    """Return what is left of `PROBABILITIES` under some bounds."""
    logits = torch.tensor(PROBABILITIES).log()[None] + 3.0  # A shift changes nothing.
    columns = SamplingColumns.of([Sampling(max_tokens=1, **bounds)], 4, CPU)  # type: ignore[arg-type]
    return [round(p, 6) for p in sampled_logprobs(logits, columns)[0].exp().tolist()]


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.0}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.0, "top_k": 1, "min_p": 0.9, "top_p": 0.1}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [0.533333, 0.3, 0.133333, 0.033333]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": -1}, [0.4, 0.3, 0.2, 0.1]),
        # Tokens whose lower tail is at most 1 - p go: 0.1, then 0.3, then 0.6.
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.69}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 1e-6}, [1, 0, 0, 0]),
        # Of the likeliest 0.4: less than 0.2 goes, exactly 0.2 of it stays.
        ({"min_p": 0.49}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.8}, [1, 0, 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        # Top-p is taken of what top-k leaves: 4/9, 3/9, 2/9.
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0]),
        # min-p looks at the tempered distribution: 16/30, 9/30, 4/30, 1/30.
        ({"temperature": 0.5, "min_p": 0.3}, [16 / 25, 9 / 25, 0, 0]),
        # Colder than 0.01 and not greedy counts as 0.01.
        ({"temperature": 0.001}, [1, 0, 0, 0]),
    ],
)
def test_bounds_by_hand(bounds: dict[str, float], left: list[float]) -> None:
    assert kept(**bounds) == pytest.approx(left, abs=2e-6)


def test_ties_of_the_least_logit_are_all_kept() -> None:
    columns = SamplingColumns.of([Sampling(max_tokens=1, top_k=2)], 4, CPU)
    logprobs = sampled_logprobs(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), columns)[0]
    assert logprobs.isfinite().tolist() == [True, True, True, False]


def test_bounds_are_those_of_vllm() -> None:
    """Rows of all kinds in one batch, against vLLM's own functions in vLLM's order."""
    pytest.importorskip("vllm")
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    generator = torch.Generator().manual_seed(0)
    rows = [
        Sampling(max_tokens=1, temperature=t, top_k=k, top_p=p, min_p=m)
        for t in (0.3, 1.0, 2.0)
        for k in (-1, 1, 5, 40)
        for p in (1.0, 0.9, 0.4, 1e-4)
        for m in (0.0, 0.1, 0.7)
    ]
    logits = torch.randn((len(rows), 40), generator=generator) * 3
    expected = logits / torch.tensor([row.temperature for row in rows])[:, None]
    probabilities = expected.softmax(-1)
    least = torch.tensor([row.min_p for row in rows])[:, None]
    low = probabilities < probabilities.amax(-1, keepdim=True) * least
    expected = expected.masked_fill(low, -math.inf)
    top_k = torch.tensor([row.top_k if row.top_k > 0 else 40 for row in rows])
    top_p = torch.tensor([row.top_p for row in rows])
    expected = apply_top_k_top_p_pytorch(expected, top_k, top_p).log_softmax(-1)
    ours = sampled_logprobs(logits, SamplingColumns.of(rows, 40, CPU))
    assert torch.equal(ours.isfinite(), expected.isfinite())
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("bounds", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"min_p": 0.3}])
def test_frequencies_are_the_distribution(bounds: dict[str, float]) -> None:
    draws = 20_000
    expected = kept(**bounds)
    sampling = Sampling(max_tokens=1, **bounds)  # type: ignore[arg-type]
    columns = SamplingColumns.of([sampling] * draws, 4, CPU)
    logits = torch.tensor(PROBABILITIES).log().expand(draws, 4)
    uniform = torch.from_numpy(np.random.default_rng(7).random(draws))
    drawn = draw(sampled_logprobs(logits, columns), columns, uniform)
    counts = np.bincount(drawn.numpy(), minlength=4)
    possible = [p > 0 for p in expected]
    assert not counts[[not p for p in possible]].any()
    wanted = np.array(expected)[possible]
    assert chisquare(counts[possible], wanted / wanted.sum() * draws).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    columns = SamplingColumns.of([Sampling(max_tokens=1)], 5, CPU)
    drawn = draw(sampled_logprobs(logits, columns), columns, torch.tensor([uniform]).double())
    assert drawn.item() == (1 if uniform < 0.5 else 3)
