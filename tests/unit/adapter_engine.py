"""The in-process sampler for adapters: it puts them over a base of its own, which it never changes."""

from __future__ import annotations

from pathlib import Path

from align.learner.model.adapter import CONFIG, WEIGHTS
from rollouts.engines.protocol import SyncReport, WeightUpdate
from tests.unit.hf_engine import HFEngine


class AdapterEngine(HFEngine):
    """An `HFEngine` that takes adapter folders instead of full weights."""

    _config = b""
    """Configuration of the adapter that is loaded."""

    def sync(self, update: WeightUpdate) -> SyncReport:
        """Load the adapter in place of the one before; without one it is the base."""
        assert update.tensors is None, "this engine takes adapters"
        config = b"" if update.adapter is None else (Path(update.adapter) / CONFIG).read_bytes()
        if update.adapter is not None and config == self._config:
            self._load_factors(Path(update.adapter))
        else:
            self._change(update.adapter)
        self._config = config
        self.versions.append(update.version)
        return SyncReport(version=update.version, seconds=0.0, num_engines=1)

    def _change(self, adapter: str | None) -> None:
        """Take the adapter off, and put another one on."""
        from peft import PeftModel

        if isinstance(self._model, PeftModel):
            self._model = self._model.unload()
        if adapter is not None:
            self._model = PeftModel.from_pretrained(self._model, adapter).eval()

    def _load_factors(self, adapter: Path) -> None:
        """Load other factors into the layers that are there."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        factors = load_file(adapter / WEIGHTS)
        loaded = set_peft_model_state_dict(self._model, factors)
        assert not loaded.unexpected_keys
        assert not [name for name in loaded.missing_keys if "lora_" in name]
