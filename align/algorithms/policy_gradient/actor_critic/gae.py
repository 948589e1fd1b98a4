"""Generalised advantage estimation over the tokens of a completion, in plain numbers.

    delta_t = r_t + gamma V_{t+1} - V_t          V = 0 after the last token
    A_t     = sum_l (gamma lam)^l delta_{t+l}
    R_t     = A_t + V_t                          what the critic learns

Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16. ``lam`` 0 is the one-step error, which trusts the
critic; ``lam`` 1 is the return minus the value, which trusts the sample. ``V_t`` is the critic's value
before token ``t`` is chosen, so a completion ends in a state of value 0, whether truncated or not. In an
episode the token after a turn's last one is the first of the next turn: observations are no actions.

Legend: ``_T`` sampled tokens of one completion, ``_BT`` those of several, each of its own length.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

from align.algorithms.rows import Floats

EPS = 1e-8
"""Number added to the variance when advantages are whitened."""


def terminal_rewards(score: float, length: int) -> Floats:
    """Spread a completion's score over its tokens: all of it at the last one.

    >>> terminal_rewards(2.0, 3)
    (0.0, 0.0, 2.0)
    """
    return (0.0,) * (length - 1) + (score,)


def gae(
    rewards_T: Sequence[float], values_T: Sequence[float], *, gamma: float, lam: float
) -> tuple[Floats, Floats]:
    """Compute advantages and returns of one completion by the module's formulas.

    >>> gae((0.0, 1.0), (0.5, 0.25), gamma=1.0, lam=1.0)
    ((0.5, 0.75), (1.0, 1.0))
    """
    advantages_T: list[float] = []
    advantage = following = 0.0
    for reward, value in reversed(list(zip(rewards_T, values_T, strict=True))):
        delta = reward + gamma * following - value
        advantage = delta + gamma * lam * advantage
        advantages_T.append(advantage)
        following = value
    advantages_T.reverse()
    returns = (a + v for a, v in zip(advantages_T, values_T, strict=True))
    return tuple(advantages_T), tuple(returns)


def whiten(values_BT: Sequence[Sequence[float]]) -> list[Floats]:
    """Normalise values to mean 0 and unbiased standard deviation 1 over all tokens; shape as given.

    A single token becomes 0.

    Source: Huang et al. 2024, arXiv 2403.17031, which whitens the advantages of a whole batch.

    >>> whiten([[1.0, 2.0], [3.0]])
    [(-0.999999995, 0.0), (0.999999995,)]
    """
    flat = [value for values_T in values_BT for value in values_T]
    mean = fsum(flat) / max(len(flat), 1)
    variance = fsum((value - mean) ** 2 for value in flat) / max(len(flat) - 1, 1)
    scale = 1.0 / sqrt(variance + EPS)
    return [tuple((value - mean) * scale for value in values_T) for values_T in values_BT]


def explained_variance(mean: float, square: float, error_square: float) -> float:
    """Compute ``1 - E[(R - V)^2] / Var R``: 1 for a perfect critic, 0 for one that predicts the mean.

    The parts can be summed over micro-batches, the ratio cannot. Returns that do not vary give 0.

    Args:
        mean: mean of the returns.
        square: mean of the squared returns.
        error_square: mean of the squared difference between returns and values.
    """
    variance = square - mean * mean
    return 1.0 - error_square / variance if variance > EPS * max(1.0, square) else 0.0
