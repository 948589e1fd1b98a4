"""Suites whose items are prompts: what all of those share, however they are asked and scored."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from align.config.data import PromptsConfig
from align.gate.overlap import Item
from align.gate.suites.suite import Suite, rendered
from rollouts.errors import UserError, within
from rollouts.prompts import text_of
from rollouts.types import Prompt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rollouts.prompts import PromptEncoder, Scheme

PROBED = 64
"""Most tokens of an item that an engine is tried with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSuite(Suite, ABC):
    """A suite with a prompt for every item."""

    prompts: tuple[Prompt, ...] = ()

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the prompts."""
        return tuple(prompt.id for prompt in self.prompts)

    @property
    def item_clusters(self) -> tuple[str, ...]:
        """Values of the column ``cluster``; empty without it."""
        return tuple(str(p.columns[self.cluster]) for p in self.prompts if self.cluster)

    @property
    def shown(self) -> tuple[str, ...]:
        """Prompts as people see them in results."""
        return tuple(map(rendered, self.prompts))

    def texts(self, encoder: PromptEncoder) -> list[Item]:
        """Return the words of every prompt that can become an item."""
        return [Item((text_of(prompt),), prompt.location) for prompt in self.pool]

    def chosen(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the prompts at some places."""
        return {"prompts": tuple(self.prompts[i] for i in places)}

    def probe(self, encoder: PromptEncoder) -> tuple[int, ...]:
        """Return tokens of the first prompt, two at least: the first one has no logprob."""
        text = self.prompts[0].text or ""
        ids = tuple(encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        return ids[:PROBED] if len(ids) > 1 else (*encoder.eos_ids[:1], *ids) * 2


def is_demo(source: str) -> bool:
    """Tell if a source is of the demo world, which has an eval split of its own."""
    return source.startswith("demo://")


def eval_split(prompts: PromptsConfig, items: int, *, forced: bool) -> PromptsConfig:
    """Return the eval split of a demo source, ``items`` long; any other source as it is.

    Args:
        forced: override what the source says, for a training source turned into its eval twin.
    """
    if not is_demo(prompts.source):
        return prompts
    address, _, query = prompts.source.partition("?")
    wanted = {"split": "eval", "n": str(items)}
    stated = dict(parse_qsl(query, keep_blank_values=True))
    options = {**stated, **wanted} if forced else {**wanted, **stated}
    source = f"{address}?{urlencode(options)}"
    return prompts.model_copy(update={"source": source, "limit": None if forced else prompts.limit})


def read_items(
    name: str,
    prompts: PromptsConfig,
    items: int,
    schemes: Mapping[str, Scheme],
    round: str | None,
    where: str,
) -> tuple[Prompt, ...]:
    """Read exactly ``items`` distinct prompts: a repeated one would pretend to be more evidence.

    Raises:
        UserError: the source cannot be read, or holds fewer.
    """
    from rollouts.prompts import load_prompts

    with within(where):
        read = load_prompts(prompts, schemes, round, "new" if round else "general")
    if len(read) < items:
        raise UserError(
            f"suite {name!r} asks for {items} items and {prompts.source!r} has {len(read)}",
            where=where,
            remedy=f"give it more prompts, or set items to {len(read)} or less",
        )
    return tuple(read[:items])
