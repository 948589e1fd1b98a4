"""Whole rounds under two features at once, each of which could leave out what the other needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from align.bank.bank import read_bank
from align.config.campaign import CampaignConfig
from align.data.replay.buffer import ReplayBuffer
from align.retention.anchors.copr import RankedAnswers, read_sets
from align.round.inputs import load_inputs
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.unit.align.round.test_bank_rounds import bank_campaign, bank_folder
from tests.unit.align.round.test_bank_rounds import run as run_bank
from tests.unit.align.round.test_method_rounds import COPR
from tests.unit.align.round.test_override_rounds import FIRST, FLIPPED, SECOND, write
from tests.unit.align.round.test_retention_rounds import campaign_under, run
from tests.unit.align.round.test_round import Ran
from tests.unit.campaigns import campaign, rounds

KEPT = {"name": "copr", "stored": 200, "per_step": 2}


def ranked(ran: Ran, index: int, name: str) -> dict[str, list[RankedAnswers]]:
    """Ranked answers that a round left, by the round that ranked them."""
    folder = ran.config.folder / f"rounds/{index:02d}-{name}/attempt-1/artifacts"
    by_round: dict[str, list[RankedAnswers]] = {}
    for entry in read_sets(folder / "copr.safetensors"):
        by_round.setdefault(entry.round, []).append(entry)
    return by_round


@pytest.mark.parametrize(
    "merge", [{"name": "linear", "shares": 0.6}, {"name": "warp"}], ids=lambda merge: merge["name"]
)
def test_a_merged_round_leaves_the_answers_that_it_ranked(
    merge: dict[str, Any], tmp_path: Path
) -> None:
    plain = run(campaign_under(tmp_path / "plain", [KEPT], rounds=COPR[:1]))
    rounds = [{**spec, "merge": merge} for spec in COPR]
    merged = run(campaign_under(tmp_path / "merged", [KEPT], rounds=rounds))
    assert ranked(merged, 0, "first") == ranked(plain, 0, "first") != {}
    assert any("copr/lambda/first" in line for line in merged.metrics(1, "second"))
    assert ranked(merged, 1, "second").keys() > ranked(merged, 0, "first").keys()


@pytest.mark.parametrize("shares_source", [False, True], ids=["by content", "as a whole"])
def test_answers_to_overridden_prompts_are_constrained_no_more(
    shares_source: bool, tmp_path: Path
) -> None:
    """The second round takes one step, so it ranks a part of what it contradicts itself."""
    first, second = write(tmp_path / "a.jsonl", FIRST), write(tmp_path / "b.jsonl", SECOND)
    second = {**(first if shares_source else second), "mode": "override"}
    kept: dict[str, Any] = {"retention": [KEPT], "replay": {"past": 0.0, "general": 0.0}}
    specs = rounds({**first, **kept, "steps": 5}, {**second, **kept})
    ran = run(campaign(tmp_path, rounds=specs))
    encode = load_inputs(ran.config).encoder.encode
    gone = {encode(Prompt(id=text, text=text)) for text, _, _ in FIRST[:FLIPPED]}
    before, after = ranked(ran, 0, "round0"), ranked(ran, 1, "round1")
    stored = {entry.prompt for entry in before["round0"]}
    own = {entry.prompt for entry in after["round1"]}
    assert gone & stored - own and stored - gone - own
    left = {entry.prompt for entry in after.get("round0", ())}
    assert left == (set() if shares_source else stored - gone - own)


@pytest.mark.parametrize("buffer", [12, 0], ids=["like stored ones", "freely"])
def test_the_parent_writes_no_prompt_that_the_round_asks_itself(
    buffer: int, tmp_path: Path
) -> None:
    """Held to an earlier snapshot it would forbid what the round teaches. The parent parrots them here."""
    replay = {
        "past": 0.4,
        "general": 0.0,
        "buffer": buffer,
        "synthesis": {"count": 8, "oversample": 20.0},
    }
    specs = rounds(
        {"prompts": "demo://rev?n=60", "replay": {"buffer": buffer}},
        {"prompts": "demo://inc?n=12", "replay": replay},
    )
    config = campaign(tmp_path, rounds=specs)
    prompts = load_inputs(config).prompts
    asked, stored = ({str(p.text) for p in prompts[name]} for name in ("round1", "round0"))
    says = cycle(sorted(asked | stored) + sorted(f"{text} 0" for text in stored))

    def parrot(engine: Any, asking: Sequence[Prompt], *_: Any, **__: Any) -> list[RolloutGroup]:
        return [
            RolloutGroup(
                prompt=prompt,
                prompt_ids=(0,),
                completions_G=(replace(Completion.failed(""), text=next(says)),),
                policy="parent",
                seed=0,
            )
            for prompt in asking
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.round.records.synthesis.collect", parrot)
        ran = run(config)
    (path,) = config.folder.glob("replay/synthetic-*.jsonl")
    (written,) = ReplayBuffer.load(path).entries.values()
    buffered = ReplayBuffer.load(ran.evidence.store.paths.replay(ran.candidates["round0"] or ""))
    texts = {str(prompt.text) for prompt in written}
    assert texts and texts.isdisjoint(asked)
    assert texts.isdisjoint(str(prompt.text) for prompt in buffered.entries["round0"])


def test_lost_prompts_are_made_again_before_a_round_overrides_by_a_reward(tmp_path: Path) -> None:
    """The earlier round's reward judges the new pairs on the prompts that were kept of it."""
    pairs = [(text, wrong, right) for text, right, wrong in FIRST[:FLIPPED]]
    specs = rounds({}, {**write(tmp_path / "b.jsonl", pairs), "mode": "override"})
    first = run(campaign(tmp_path, rounds=specs[:1]))
    first.evidence.store.paths.replay(first.candidates["round0"] or "").unlink()
    both = run(campaign(tmp_path, rounds=specs))
    assert any("made again from the data of round0" in note for note in both.watcher.notes)
    assert any("round1: overrides" in note for note in both.watcher.notes)


@pytest.mark.parametrize("count", [FLIPPED, FLIPPED // 2], ids=["all", "half"])
def test_an_adapter_leaves_the_bank_once_all_of_its_prompts_are_overridden(
    count: int, tmp_path: Path
) -> None:
    """Two files with the same prompts: keys of both would lie in the same places."""
    flipped = [(text, wrong, right) for text, right, wrong in FIRST[:count]]
    first = write(tmp_path / "a.jsonl", FIRST[:FLIPPED])
    later = flipped + FIRST[count:FLIPPED]
    second = {**write(tmp_path / "b.jsonl", later), "mode": "override"}
    config = bank_campaign(tmp_path)
    raw = {**config.model_dump(mode="json"), "rounds": rounds(first, second)}
    ran = run_bank(CampaignConfig.model_validate(raw))
    left = [adapter.name for adapter in read_bank(bank_folder(ran, "round1")).adapters]
    assert left == (["round1"] if count == FLIPPED else ["round0", "round1"])
