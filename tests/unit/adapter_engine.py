"""The in-process sampler for adapters: it puts them over a base of its own, which it never changes."""

from __future__ import annotations

from rollouts.engines.protocol import SyncReport, WeightUpdate
from tests.unit.hf_engine import HFEngine


class AdapterEngine(HFEngine):
    """An `HFEngine` that takes adapter folders instead of full weights."""

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load the adapter in place of the one before; without one it is the base."""
        from peft import PeftModel

        assert update.tensors is None, "this engine takes adapters"
        if isinstance(self._model, PeftModel):
            self._model = self._model.unload()
        if update.adapter is not None:
            self._model = PeftModel.from_pretrained(self._model, update.adapter).eval()
        self.versions.append(update.version)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)
