"""A campaign's content as a store holds it, read by this version.

Every default stands in the content, so a setting that is new in this version is missing from what an older
one wrote. It was as the default is now; anything else that differs is a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.store.auto import ADAPTER_BEFORE_AUTO


def as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `CampaignConfig.content` would give today; as it is where it is no campaign any more."""
    try:
        return CampaignConfig.model_validate(as_then(content)).content()
    except ValidationError:
        return dict(content)


def as_then(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with what it leaves out spelt out.

    A round without ``retention`` is held by its anchors alone, whatever the defaults list. Adapters were
    served where a store of an earlier version says nothing else.
    """
    rounds = [{"retention": [], **spec} for spec in content.get("rounds", ())]
    content = {**content, "rounds": rounds}
    policy = content.get("policy") or {}
    if not policy.get("lora"):
        return content
    lora = {"serve": ADAPTER_BEFORE_AUTO, **policy["lora"]}
    return {**content, "policy": {**policy, "lora": lora}}
