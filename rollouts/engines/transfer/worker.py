"""Extension of vLLM's workers, which vLLM imports in each of their processes by its name.

Importing it makes Keel's backends known there: a worker builds its backend when it is initialized.
"""

from __future__ import annotations

from typing import Any

from rollouts.engines.transfer.backends import register_backends
from rollouts.machine.memory import return_freed_memory

register_backends()


class WorkerExtension:
    """Methods that a worker of vLLM has besides its own, called by ``collective_rpc``."""

    def return_memory(self) -> None:
        """Return to the system what a weight update or long prompts have left free."""
        return_freed_memory()

    def abandon_update(self) -> None:
        """End an update that was started and is not to be finished: the weights have no name now."""
        worker: Any = self
        if worker._weight_update_active:
            worker.weight_transfer_engine.reload.finish()
            worker._weight_update_active = False
