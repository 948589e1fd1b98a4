"""Defaults of earlier versions, kept by the stores that began with them where their file states nothing.

A suite could once lose 2 points, and 3 points in all. Every default stands spelt out in a store, so a store
with these values and a file that is silent goes on as it began. A new default is had by stating it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from align.config.campaign import CampaignConfig
from align.config.gate import with_margin
from align.store.auto import ADAPTER_BEFORE_AUTO

MARGIN = 0.02
"""``suites.margin``, before it fitted the default number of items."""
TOTAL_BUDGET = 0.03
"""``gate.total_budget``, before it followed from the margin."""

UNSET_REPLAY: Mapping[str, Any] = {
    "draw": {"name": "balanced"},
    "examples": 0.0,
    "synthesis": None,
    "answers": None,
    "pretraining": None,
}
"""Settings of ``replay`` that a store leaves out where they are not set."""


def with_earlier_defaults(config: CampaignConfig, stored: Mapping[str, Any]) -> CampaignConfig:
    """Return a campaign with the defaults that its store began with; those that the file states stay.

    Args:
        stored: the campaign's content in the store.
    """
    gate = config.gate
    budget_kept = (
        "total_budget" not in gate.model_fields_set
        and stored.get("gate", {}).get("total_budget") == TOTAL_BUDGET
    )
    if budget_kept:
        gate = gate.model_copy(update={"total_budget": TOTAL_BUDGET})
    began = {
        suite["name"]: None if _is_fitted(suite, stored.get("gate", {})) else suite.get("margin")
        for suite in stored.get("suites", [])
    }
    suites = tuple(
        with_margin(suite, min(MARGIN, gate.budget_of(suite)))
        if began.get(suite.name, MARGIN if budget_kept else None) == MARGIN
        else suite
        for suite in config.suites
    )
    return config.model_copy(update={"gate": gate, "suites": suites})


def _is_fitted(suite: Mapping[str, Any], gate: Mapping[str, Any]) -> bool:
    """Tell if a stored margin is half of its budget, as this version makes it.

    Only stores that this version wrote spell out ``gate.stopping``; some of them began with an earlier one.
    """
    budget = gate.get("total_budget") if suite.get("budget") is None else suite["budget"]
    return "stopping" in gate and budget is not None and suite.get("margin") == 0.5 * budget


def as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `CampaignConfig.content` would give today; as it is where it is no campaign any more."""
    try:
        return CampaignConfig.model_validate(as_then(content)).content()
    except ValidationError:
        return dict(content)


def as_then(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with what it leaves out spelt out.

    A round without ``retention`` is held by its anchors alone, one without ``merge`` merges nothing, and of
    replay and repairs it has what it states, whatever the defaults say. Adapters were served where a store
    of an earlier version says nothing else.
    """
    rounds = [
        {
            "retention": [],
            "merge": None,
            **_renamed(spec),
            "replay": {**UNSET_REPLAY, **(spec.get("replay") or {})},
            "repair": {"index": False, **(spec.get("repair") or {})},
        }
        for spec in content.get("rounds", ())
    ]
    content = {**content, "rounds": rounds}
    if "defaults" in content:
        content["defaults"] = _renamed(content["defaults"])
    policy = content.get("policy") or {}
    if not policy.get("lora"):
        return content
    lora = {"serve": ADAPTER_BEFORE_AUTO, **policy["lora"]}
    return {**content, "policy": {**policy, "lora": lora}}


def _renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's settings with today's names: ``std`` of an algorithm became ``scale``."""
    algorithm = settings.get("algorithm")
    if not isinstance(algorithm, Mapping) or "std" not in algorithm:
        return dict(settings)
    rest = {key: value for key, value in algorithm.items() if key != "std"}
    scale = "group" if algorithm["std"] else "none"
    return {**settings, "algorithm": {"scale": scale, **rest}}
