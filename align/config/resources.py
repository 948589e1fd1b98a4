"""Resources that one process of a campaign reserves on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from align.settings import Settings


class ResourcesConfig(Settings):
    """Ray's logical resources: what decides how many processes fit on a node, not what they may use."""

    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs."""
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None
    """GPUs, or a share of one; None: one where the cluster has any. 0 keeps the process on the CPU."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Resources that nodes were started with (``ray start --resources``), such as ``{a100: 1}``: the
    process goes where they are. On a cluster of your own on this machine there are always enough."""

    def bundle(self, *, gpus: bool) -> dict[str, float]:
        """Return the resources as Ray names them.

        Args:
            gpus: whether the cluster has any.
        """
        share = float(gpus) if self.gpus is None else self.gpus
        return {"CPU": self.cpus, **({"GPU": share} if share else {}), **self.custom}
