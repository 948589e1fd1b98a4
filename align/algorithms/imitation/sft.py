"""SFT: supervised fine-tuning on demonstrations; over several rounds, continual instruction tuning.

    L = -1/N sum_t log pi(y_t | x, y_<t)

over the completion tokens alone. Source: maximum likelihood; as the second stage of continual
learning, Wu et al. 2024, arXiv 2402.01364. SFT forgets more than learning from the policy's own samples
does (Shenfeld et al. 2026, arXiv 2601.19897). Anchors on past and general prompts work here too, and
`distill` with a demonstration learns from the same material on-policy.
"""

from __future__ import annotations

from typing import Literal

from align.algorithms.base import Material
from align.algorithms.imitation.imitation import Imitation


class SFT(Imitation):
    """Supervised fine-tuning on demonstrations."""

    name: Literal["sft"] = "sft"

    @property
    def material(self) -> Material:
        return "demonstrations"
