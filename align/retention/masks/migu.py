"""Magnitude-based gradient updating: outputs of a layer that are small on this batch get no gradient.

    n_o     mean over tokens of |h_o| / sum_o' |h_o'|     for output o of a linear layer
    g_o     <- 0    where n_o is below the top ``1 - masked`` share of the layer's outputs

Du et al. 2024, arXiv 2406.17245, section 3: batches of different tasks have large outputs in different
places, so tasks are told apart without labels. Row o of a matrix is what makes output o. The gradient is
gated, as in the paper; the moments of a gated row go on falling, and still move it a little. Of an adapter
both factors are gated. Weights that are no linear layer's alone (embeddings, norms) are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from threading import get_ident

import torch
from torch import Tensor

from align.config.retention.methods import MIGUConfig
from align.learner.ranks.sharding import local, part_like
from align.retention.activations import LinearWeight, linear_weights, watching
from align.retention.base import RetentionMethod
from align.retention.masks.mofo import largest


class MIGU(RetentionMethod[MIGUConfig]):
    """Gate on the rows of each linear layer's gradient, chosen anew in every step."""

    acts_on_weights = True

    _layers: Mapping[str, LinearWeight]
    _sums: defaultdict[str, dict[int, Tensor]]
    """Sums over this step's tokens of each output's share, by parameter name and thread."""

    _removed: float = 0.0
    """Share of the last gradient's length that was taken out."""

    def before_round(self) -> None:
        self._layers = linear_weights(self.view.policy.model)
        self._sums = defaultdict(dict)

    def during_passes(self) -> AbstractContextManager[None]:
        self._sums.clear()
        return watching(self.view.policy.model, self._see)

    @torch.no_grad()
    def project(self, gradients: Mapping[str, Tensor]) -> None:
        before = sum(float(gradient.square().sum()) for gradient in gradients.values())
        self._gate(gradients)
        after = sum(float(gradient.square().sum()) for gradient in gradients.values())
        sums = self.summed(before=before, after=after)
        left = sums["after"] / sums["before"] if sums["before"] > 0 else 1.0
        self._removed = max(0.0, 1.0 - left) ** 0.5

    def after_step(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        return {f"retention/{self.name}": self._removed}

    def _gate(self, gradients: Mapping[str, Tensor]) -> None:
        parameters = self.view.policy.named_parameters()
        for name, shares in self._shares().items():
            layer, parameter = self._layers[name], parameters[name]
            moves = largest(shares, 1.0 - self.config.masked)
            mask = torch.ones(parameter.shape, device=shares.device)
            layer.rows(mask)[~moves] = 0.0
            gradients[name].mul_(local(part_like(mask, parameter.detach())))

    def _see(self, name: str, _: Tensor, outputs: Tensor) -> None:
        sizes = outputs.abs()
        total = sizes.sum(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
        shares = (sizes / total).sum(0)
        threads = self._sums[name]
        before = threads.get(get_ident())
        threads[get_ident()] = shares if before is None else before + shares

    def _shares(self) -> dict[str, Tensor]:
        """Return the summed shares of every output, over threads and ranks.

        Which thread takes which passes is not fixed, so that threads are added in the order of their
        values.
        """
        sums = {
            name: torch.stack(list(threads.values())).sort(0).values.sum(0).cpu()
            for name, threads in self._sums.items()
        }
        device = self.view.policy.device
        ranks = self.view.ranks.exchange(sums)
        names = sorted({name for part in ranks for name in part})
        return {n: sum(part[n] for part in ranks if n in part).to(device) for n in names}  # type: ignore[union-attr]
