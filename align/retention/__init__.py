"""Methods that hold a policy to what earlier rounds taught it; a new one is a new file and one line here.

The package itself imports no torch: a method's module is imported when a round builds the method.
"""

from __future__ import annotations

METHODS: dict[str, str] = {
    "kl_anchors": "align.retention.anchors.kl_anchors:KLAnchors",
    "ewc": "align.retention.regularizers.ewc:EWC",
    "mas": "align.retention.regularizers.mas:MAS",
    "si": "align.retention.regularizers.si:SI",
    "l2_sp": "align.retention.regularizers.l2_sp:L2SP",
    "cpo_mask": "align.retention.regularizers.cpo:CPOMask",
    "agem": "align.retention.gradients.agem:AGEM",
    "ogd": "align.retention.gradients.ogd:OGD",
    "gpm": "align.retention.gradients.gpm:GPM",
    "hft": "align.retention.masks.hft:HFT",
    "mofo": "align.retention.masks.mofo:MoFO",
    "migu": "align.retention.masks.migu:MIGU",
    "trust_region": "align.retention.trust_region:TrustRegion",
    "o_lora": "align.retention.adapters.o_lora:OLoRA",
    "n_lora": "align.retention.adapters.n_lora:NLoRA",
    "inflora": "align.retention.adapters.inflora:InfLoRA",
    "copr": "align.retention.anchors.copr:COPRConstraint",
}
"""Class of each method by the name that `align.config.retention.registry.RETENTION` gives its settings."""
