"""First campaign file, made from a model, prompts and rewards; it passes the check.

Lengths are taken from the model's context and the longest prompt, margins from what the held-out items can
test. What cannot be made to pass is told as `keel config check` tells it.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rollouts.engines import DEFAULT_BACKEND, ENGINES
from rollouts.errors import UserError
from rollouts.types import Prompt

if TYPE_CHECKING:
    from align.config.campaign import CampaignConfig
    from align.round.inputs import Inputs

LONGEST_ANSWER = 128
"""Tokens of an answer if the model's context has room for as many."""
LEAST_MARGIN, LARGEST_MARGIN = 0.02, 0.45
"""Bounds of the margins that are written; the budget is twice the margin and stays below 1."""
RARE = 9.0
"""Least product of items and the margin of rates such as answers cut, for alpha's share of one look."""
STEPS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """Choices made on the command line."""

    model: str
    source: str
    rewards: tuple[str, ...]
    algorithm: str
    heldout: float
    store: str | None
    backend: str | None = None
    """Engine backend; None for the default, or for one that is installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes chosen for the model and the data."""

    chat: bool = False
    """Texts become chats, since the model has a chat template."""
    max_tokens: int = 1
    margin: float = LARGEST_MARGIN
    rate_margin: float = LARGEST_MARGIN
    """Largest rise of answers that are cut, or that the metric cannot score."""


def write_campaign(file: Path, wishes: Wishes) -> list[str]:
    """Choose sizes, check, and write the file; return sentences on what was chosen.

    Raises:
        UserError: the model, the data or a reward cannot be used. Nothing is written then.
    """
    from align.config.file import parse_campaign
    from align.gate.power.underpowered import foresee
    from align.report.forecast.check import are_bare, check_campaign
    from align.round.inputs import load_inputs

    if not os.access(file.absolute().parent, os.W_OK):
        raise _unwritable(file, "the folder is read-only here, or another user's")
    config = parse_campaign(campaign_text(file, wishes, Sizes()), file).config
    inputs = load_inputs(config)
    plan = foresee(config, inputs.suites, None)
    inputs.close()
    items = len(inputs.suites[0].item_ids)
    smallest = next((suite.smallest for suite in plan.suites), LEAST_MARGIN)
    if smallest is None or smallest > LARGEST_MARGIN:
        raise UserError(
            f"{items} held-out items are too few to tell a loss of {LARGEST_MARGIN:g} from none",
            where=wishes.source,
            remedy="give more prompts, or a larger --heldout",
        )
    in_file = bool(wishes.rewards) and "://" not in wishes.source
    chat = in_file and are_bare(inputs.prompts[config.rounds[0].name], inputs.encoder)
    sizes = Sizes(
        chat=chat,
        max_tokens=_room(config, inputs, chat=chat),
        margin=_rounded_up(smallest),
        rate_margin=_rounded_up(max(0.05, RARE / items)),
    )
    text = campaign_text(file, wishes, sizes)
    check_campaign(parse_campaign(text, file).config)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise _unwritable(file, str(error)) from error
    testable = f"{items} held-out items, which can test a loss of {sizes.margin:g}"
    lines = [
        f"answers of up to {sizes.max_tokens} tokens, {testable}" if wishes.rewards else testable
    ]
    if chat:
        lines.append("the prompts are texts: each is a user's message in the model's chat template")
    return lines


def _unwritable(file: Path, cause: str) -> UserError:
    remedy = "name a file in a folder of yours"
    return UserError("the file cannot be written", where=str(file), cause=cause, remedy=remedy)


def _room(config: CampaignConfig, inputs: Inputs, *, chat: bool) -> int:
    """Return the tokens left for an answer beside the longest prompt."""
    (spec,) = config.rounds
    prompts = [*inputs.prompts[spec.name], *(p for s in inputs.suites for p in s.pool)]
    if chat:
        turns = [({"role": "user", "content": prompt.text},) for prompt in prompts]
        prompts = [Prompt(id="", messages=messages) for messages in turns]
    longest = max((len(inputs.encoder.encode(prompt)) for prompt in prompts), default=0)
    return max(1, min(LONGEST_ANSWER, inputs.context - longest - 1))


def _rounded_up(margin: float) -> float:
    return min(max(math.ceil(100 * margin) / 100, LEAST_MARGIN), LARGEST_MARGIN)


def campaign_text(file: Path, wishes: Wishes, sizes: Sizes) -> str:
    """Compose the YAML of a campaign that lies in a file."""
    name = _slug(file.stem) or "campaign"
    # A round is named after its first reward, or its algorithm.
    lesson = wishes.rewards[0].rpartition(":")[2] if wishes.rewards else wishes.algorithm
    store = f"runs/{name}" if wishes.store is None else _from_file(file, wishes.store)
    tiny = wishes.model.startswith("demo://")
    return TEMPLATE.format(
        name=_word(name),
        store=json.dumps(store),
        model=json.dumps(_from_file(file, wishes.model)),
        lora="# lora: {rank: 16}     # an adapter in place of all weights" if tiny else LORA,
        engines=_engines(wishes.backend),
        max_tokens=sizes.max_tokens,
        suite=_margins(wishes, sizes),
        round=_word(_slug(lesson) or name),
        material=_material(file, wishes, chat=sizes.chat),
        steps=STEPS,
    )


def _engines(backend: str | None) -> str:
    """Write the engines' backend if one is asked for, or if only another than the default is installed."""
    if backend is not None:
        return f"\nrollouts: {{backend: {json.dumps(backend)}}}\n"
    available = [name for name, spec in ENGINES.items() if spec.is_installed()]
    if DEFAULT_BACKEND in available or not available:
        return ""
    return f"\nrollouts: {{backend: {available[0]}}}    # {DEFAULT_BACKEND} is not installed here\n"


def _margins(wishes: Wishes, sizes: Sizes) -> str:
    """Write the margins of the round's suite; if answers are sampled, those of its rates too."""
    rates = f", truncation_margin: {sizes.rate_margin:g}, failure_margin: {sizes.rate_margin:g}"
    return f"margin: {sizes.margin:g}{rates if wishes.rewards else ''}"


def _material(file: Path, wishes: Wishes, *, chat: bool) -> str:
    """Write the material of the round and its algorithm: prompts and rewards, or a file of examples."""
    source = _from_file(file, wishes.source)
    stated = json.dumps(source)
    if "://" not in source:
        stated = (
            f"{{source: {stated}, heldout: {wishes.heldout:g}{', chat: true' if chat else ''}}}"
        )
    if wishes.rewards:
        rewards = []
        for reward in wishes.rewards:
            path, colon, function = reward.rpartition(":")
            is_file = colon and path.endswith(".py")
            rewards.append(f"{_from_file(file, path)}:{function}" if is_file else reward)
        listing = ", ".join(map(json.dumps, rewards))
        lines = [f"algorithm: {wishes.algorithm}", f"prompts: {stated}", f"rewards: [{listing}]"]
    else:
        lines = [f"algorithm: {_reading_a_file(wishes.algorithm)}", f"data: {stated}"]
    return "\n    ".join(lines)


def _reading_a_file(name: str) -> str:
    """Write an algorithm, by its name, so that it judges no samples of its own but reads a file."""
    from align.algorithms import ALGORITHMS

    if name not in ALGORITHMS:
        return name
    fields = ALGORITHMS[name].model_fields
    options = "".join(f", {field}: file" for field in ("pairs", "ratings") if field in fields)
    return f"{{name: {name}{options}}}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")


def _word(text: str) -> str:
    """Spell a text for YAML, in quotes only where it would be read as a number, say."""
    from align.config.file import parse_value

    return text if parse_value(text) == text else json.dumps(text)


def _from_file(file: Path, text: str) -> str:
    """Restate a path given from the current folder as one from the campaign's."""
    is_path = text.startswith((".", "runs/")) or os.path.exists(text)
    if "://" in text or text.startswith(("/", "~")) or not is_path:
        return text
    return os.path.relpath(text, file.absolute().parent)


LORA = "lora: {rank: 16}       # an adapter; remove the line to train all weights"

TEMPLATE = """\
# A campaign of alignment rounds. Paths start from this file's folder. keel config show FILE --resolved
# prints every key with its default.
name: {name}
store: {store}       # snapshots, ledger, results of every item

policy:
  model: {model}
  {lora}
{engines}
defaults:                  # of every round, unless it says otherwise
  sampling: {{group_size: 8, prompts_per_step: 16, max_tokens: {max_tokens}}}
  optimizer: {{lr: 1.0e-4}}
  # replay: {{general_prompts: FILE}}    # prompts of no round, held to the base model's answers

rounds:                    # one after the other; append the next one here when this one is accepted
  - name: {round}
    {material}
    steps: {steps}
    # Largest loss that a later round may cause: the smallest that the held-out items can test.
    suite: {{{suite}}}

# What no round may lose, besides what earlier rounds taught:
# suites:
#   - {{name: general, prompts: FILE, metric: exact_match, items: 500, margin: 0.05}}
#   - {{name: text, text: FILE.txt, margin: 0.05}}

gate: {{alpha: 0.05, campaign_rounds: 5}}  # chance of accepting a loss, over so many rounds together
"""
