"""Continual pre-training: next-token prediction on plain texts, for knowledge, domains and languages.

    L = -1/N sum_t log pi(y_t | y_<t)

over all tokens of a text except the first ones, which have nothing before them. Source: the first of the
three stages of continual learning in Wu et al. 2024, arXiv 2402.01364 (pre-training, instruction
tuning, alignment).
"""

from __future__ import annotations

from typing import Literal

from align.algorithms.base import Material
from align.algorithms.imitation.imitation import Imitation


class Pretrain(Imitation):
    """Continual pre-training on texts."""

    name: Literal["pretrain"] = "pretrain"

    @property
    def material(self) -> Material:
        return "texts"
