"""A win rate is fair to both sides: order does not matter, a tie is half, and oneself is one half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.campaign import run_campaign
from align.errors import StoreError
from align.gate.suites.kinds.win_rate import WinRateSuite
from align.gate.suites.known import KnownSnapshots
from align.gate.suites.win_rate import Duel, RivalAnswer, load_answers, save_answers, win
from align.store.paths import StorePaths
from rewards.base import RewardPart
from rewards.rubric import Rubric
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt, RolloutGroup
from tests.unit.align.gate.suites.test_gate_suites import GENERAL, build, campaign
from tests.unit.campaigns import Starter, Watcher, rounds
from tests.unit.campaigns import campaign as small
from tests.unit.episodes import episode

ASKED: list[tuple[str, str]] = []


def longer(completions: Sequence[str], reference: Sequence[str], **_: Any) -> list[float]:
    """Prefers the longer answer, and notes what it was asked."""
    ASKED.extend(zip(completions, reference, strict=True))
    return [win(len(c), len(r)) for c, r in zip(completions, reference, strict=True)]


def first_shown(completions: Sequence[str], reference: Sequence[str], **_: Any) -> list[float]:
    """Always prefers the completion to the reference, whatever they are."""
    return [1.0] * len(completions)


def length(completions: Sequence[str], **_: Any) -> list[float | None]:
    """Of one answer alone; nothing to say about ``?``."""
    return [None if c == "?" else float(len(c)) for c in completions]


def rubric(function: Any) -> Rubric:
    return Rubric([RewardPart(name="part", weight=1.0, function=function, options={})])


def group(item: str, *said: str | None) -> RolloutGroup:
    completions = tuple(
        Completion.failed("it died")
        if text is None
        else Completion(token_ids=(1,), logprobs_T=(0.0,), text=text, finish_reason="stop")
        for text in said
    )
    prompt = Prompt(id=item, text=item)
    return RolloutGroup(
        prompt=prompt, prompt_ids=(1,), completions_G=completions, policy="p", seed=0
    )


def duel(folder: Path, *theirs: str | None) -> Duel:
    path = folder / "answers.jsonl"
    save_answers(path, [group(f"item{i}", text) for i, text in enumerate(theirs)])
    return Duel(against="base", comparator="base", answers=path)


def values(found: Duel, function: Any, *ours: str | None) -> list[float | None]:
    groups = [group(f"item{i}", text) for i, text in enumerate(ours)]
    return [one.scores_G[0].value for one in found.score(groups, rubric(function))]


def test_won_tied_and_lost(tmp_path: Path) -> None:
    rival = duel(tmp_path, "bb", "bb", "bb")
    assert values(rival, longer, "aaa", "aa", "a") == [1.0, 0.5, 0.0]
    assert values(rival, length, "aaa", "aa", "a") == [1.0, 0.5, 0.0]


def test_both_orders_are_asked_and_the_same_words_are_not(tmp_path: Path) -> None:
    ASKED.clear()
    assert values(duel(tmp_path, "bb", "same"), longer, "aaa", "same") == [1.0, 0.5]
    assert ASKED == [("aaa", "bb"), ("bb", "aaa")]


def test_a_judge_that_prefers_what_it_sees_first_tells_nothing(tmp_path: Path) -> None:
    assert values(duel(tmp_path, "b", "b"), first_shown, "a", "c") == [0.5, 0.5]


def test_what_is_missing_on_either_side_has_no_value(tmp_path: Path) -> None:
    rival = duel(tmp_path, "b", None, "b", "?")
    groups = [group(f"item{i}", text) for i, text in enumerate([None, "a", "?", "a"])]
    scores = [one.scores_G[0] for one in rival.score(groups, rubric(length))]
    assert [score.value for score in scores] == [None] * 4
    assert [score.status for score in scores] == ["failed", "failed", "abstained", "abstained"]
    assert "comparator" in (scores[1].detail or "")


def test_every_completion_of_an_item_is_compared(tmp_path: Path) -> None:
    (scored,) = duel(tmp_path, "bb").score([group("item0", "aaa", "a", "bb")], rubric(length))
    assert [score.value for score in scored.scores_G] == [1.0, 0.0, 0.5]


def test_answers_come_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    save_answers(path, [group("a", "ä\n"), group("b", None)])
    assert load_answers(path) == {"a": RivalAnswer(text="ä\n"), "b": None}
    path.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        load_answers(path)


def suite(against: str) -> WinRateSuite:
    spec = {**GENERAL, "metric": {"name": "distinct_ngrams", "options": {"n": 1}}}
    (wins, _) = build(campaign(suites=[{**spec, "against": against, "role": "watch"}]))
    assert isinstance(wins, WinRateSuite)
    return wins


def known(folder: Path, production: str, **accepted: str) -> KnownSnapshots:
    store = StorePaths(folder)
    return KnownSnapshots(base="b", production=production, store=store, accepted=accepted)


def test_the_rival_is_part_of_what_decides_a_value(tmp_path: Path) -> None:
    parent = suite("parent")
    named = [parent.compared(known(tmp_path, production)) for production in ("b", "c")]
    assert len({parent.hash, *(s.hash for s in named if s)}) == 3
    assert len({s.duel.answers for s in named if s}) == 2
    base = suite("base").compared(known(tmp_path, "c"))
    assert base is not None
    assert base.duel.comparator == "b"


def test_a_round_that_is_not_accepted_yet_is_no_rival(tmp_path: Path) -> None:
    later = suite("round:reverse")
    assert later.compared(known(tmp_path, "b")) is None
    rivalled = later.compared(known(tmp_path, "c", reverse="c"))
    assert rivalled is not None
    assert rivalled.duel.comparator == "c"


def test_a_rival_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match=r"'round:revers'.*no round of that name") as caught:
        suite("round:revers")
    assert caught.value.where == "suites.0.against"
    assert "did you mean 'reverse'" in str(caught.value)


def test_a_duel_without_answers_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not known yet"):
        replace(Duel(against="parent")).score([], rubric(length))


def test_a_campaign_measures_a_win_rate(tmp_path: Path) -> None:
    spec = {
        "name": "wins", "prompts": "demo://general", "metric": "exact_match", "items": 30,
        "temperature": 1.0, "against": "base", "margin": 0.2, "budget": 0.3,
    }  # fmt: skip
    watcher = Watcher()
    config = small(tmp_path, suites=[spec], rounds=rounds({}))
    evidence = run_campaign(config, start_engine=Starter(), observer=watcher)
    assert "sampling the answers of base for wins" in watcher.notes
    base = next(e for e in evidence.ledger.evaluations(evidence.base) if e.suite == "wins")
    assert base.mean == 0.5
    checks = {(c.suite, c.against): c for c in watcher.verdicts["round0"].verdict.checks}
    assert checks["wins", "parent"].snapshot == evidence.base
    (path,) = (config.folder / "evaluations" / "answers").iterdir()
    assert len(load_answers(path)) == 30


def acted(item: str, answer: str, *calls: str) -> RolloutGroup:
    """A chat whose answer follows some calls."""
    messages = tuple(
        message
        for name in calls
        for message in (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name}}]},
            {"role": "tool", "name": name, "content": "5"},
        )
    )
    said = {"role": "assistant", "content": answer}
    completion = replace(episode((1,), messages=(*messages, said)), text=answer)
    chat = Prompt(id=item, messages=({"role": "user", "content": item},))
    return replace(group(item), prompt=chat, completions_G=(completion,))


def fewer_turns(completions: Sequence[Any], reference: Sequence[Any], **_: Any) -> list[float]:
    """Prefers the episode of fewer messages."""
    return [win(-len(c), -len(r)) for c, r in zip(completions, reference, strict=True)]


def messages_of(completions: Sequence[Any], **_: Any) -> list[float]:
    return [-float(len(messages)) for messages in completions]


@pytest.mark.parametrize("function", [fewer_turns, messages_of])
def test_whole_episodes_are_compared_in_both_orders(tmp_path: Path, function: Any) -> None:
    """The rival is shown with its own turns, and the same answer after other calls is no tie."""
    path = tmp_path / "answers.jsonl"
    save_answers(path, [acted(item, "5", "add", "add") for item in "abc"])
    rival = Duel(against="base", comparator="base", answers=path)
    ours = [acted("a", "5", "add"), acted("b", "5", "add", "add"), acted("c", "5", *["add"] * 3)]
    scores = [one.scores_G[0].value for one in rival.score(ours, rubric(function))]
    assert scores == [1.0, 0.5, 0.0]
