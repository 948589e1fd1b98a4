"""Half fine-tuning: in every round a random half of each block's matrices rests.

    delta_n = 0    for a resting tensor n

Hui et al. 2024, arXiv 2404.18466, section 3: half of the matrices of each attention and feed-forward block,
and of the norms, chosen anew for every round. The rest trains as always, and clipping sees that part alone.
Tensors of one module are chosen together: the weight and bias of a layer, or both factors of its adapter.
What belongs to no layer (embedding, last norm, output head) trains, as in the paper.

The choice follows from the round's seed, so every attempt and every rank makes the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING

from align.config.retention.methods import HFTConfig
from align.retention.base import RetentionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from align.learner.penalty import WeightStep

LAYER = re.compile(r"^(.*\.\d+)\.(.+)$")
"""Name of a tensor in a layer: the layer, and the tensor's own name in it."""


class HFT(RetentionMethod[HFTConfig]):
    """Mask over whole tensors, the same through a round."""

    acts_on_weights = True
    follows_steps = True

    _resting: frozenset[str]
    """Names of the tensors that do not move in this round."""

    def before_round(self) -> None:
        """Choose the tensors that rest."""
        names = self.view.policy.named_parameters().keys()
        self._resting = resting(names, self.config.share, self.view.seed)

    def project(self, gradients: Mapping[str, Tensor]) -> None:
        for name in self._resting:
            gradients[name].zero_()

    def change_update(self, step: WeightStep) -> None:
        # Weight decay moves weights without a gradient.
        for name in self._resting:
            step.weights[name].copy_(step.before[name])

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": float(len(self._resting))}


def resting(names: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """Choose a share of the modules of each block of each layer; return the names of their tensors.

    A share that is no whole number of modules is rounded up or down at random, right on average.

    >>> names = [f"model.layers.0.mlp.{part}.weight" for part in ("up", "gate")] + ["model.norm.weight"]
    >>> sorted(resting(names, 0.5, seed=1))
    ['model.layers.0.mlp.gate.weight']
    """
    blocks: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if (match := LAYER.match(name)) is None:
            continue
        layer, path = match.groups()
        module = path.split(".lora_")[0] if ".lora_" in path else path.rpartition(".")[0]
        blocks[f"{layer}.{module.rpartition('.')[0]}"][module].append(name)
    draw = Random(seed)
    chosen: set[str] = set()
    for _, modules in sorted(blocks.items()):
        exact = share * len(modules)
        count = int(exact) + (draw.random() < exact - int(exact))
        for module in draw.sample(sorted(modules), count):
            chosen.update(modules[module])
    return frozenset(chosen)
