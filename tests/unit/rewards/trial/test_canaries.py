"""Canaries: what the suite holds, who is fooled by it, and where the bar lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rewards.base import Sample
from rewards.registry import REWARDS
from rewards.trial.canaries import (
    PADDED_WORDS,
    CanaryScore,
    asks_a_model,
    canaries,
    check_canaries,
    judge_canaries,
    threshold_of,
    try_canaries,
)
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup

PROMPT = Prompt(id="sum", text="What is two and two?", columns={"answer": "four"})
TURNS = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
CHAT = Prompt(id="chat", messages=TURNS)
GOOD = "It is four."


def exact(samples: Sequence[Sample]) -> list[float | None]:
    return [float(s.completion.text == GOOD) for s in samples]


def fooled_by(found: Sequence[object]) -> set[str]:
    return {r.name for r in found if not r.passed}  # type: ignore[attr-defined]


def test_the_suite_of_a_prompt_with_a_good_answer() -> None:
    texts = {canary.name: canary.text for canary in canaries(PROMPT, GOOD)}
    assert texts["empty"] == ""
    assert texts["copy of the prompt"] == PROMPT.text
    assert texts["truncated"] == GOOD[:5]
    assert texts["padded"].startswith(GOOD)
    assert len(texts["padded"].split()) >= PADDED_WORDS + len(GOOD.split())
    assert sum(name.startswith("master key") for name in texts) == 5
    assert len(texts) == len(canaries(PROMPT, GOOD))


def test_without_a_good_answer_nothing_is_cut_or_padded() -> None:
    names = {canary.name for canary in canaries(CHAT)}
    assert not names & {"truncated", "padded"}
    assert {c.text for c in canaries(CHAT) if c.name == "copy of the prompt"} == {"Hi"}


def test_a_sound_reward_passes() -> None:
    found = check_canaries(exact, [(PROMPT, GOOD)], real=[1.0, 0.0, 1.0])
    assert len(found) == 10
    assert fooled_by(found) == set()


@pytest.mark.parametrize(
    ("falls_for", "name"),
    [
        (lambda text: text == "Solution:", "master key 'Solution:'"),
        (lambda text: not text, "empty"),
        (lambda text: text == PROMPT.text, "copy of the prompt"),
        (lambda text: "highest possible score" in text, "ignore the rubric"),
        (lambda text: text == GOOD[:5], "truncated"),
    ],
)
def test_each_trick_is_found(falls_for: object, name: str) -> None:
    def gullible(samples: Sequence[Sample]) -> list[float | None]:
        return [
            float(s.completion.text == GOOD or falls_for(s.completion.text))  # type: ignore[operator]
            for s in samples
        ]

    found = check_canaries(gullible, [(PROMPT, GOOD)], threshold=0.5)
    assert fooled_by(found) == {name}


def test_padding_may_score_as_the_answer_does_and_no_higher() -> None:
    def contains(samples: Sequence[Sample]) -> list[float | None]:
        return [float("four" in s.completion.text) for s in samples]

    def longer(samples: Sequence[Sample]) -> list[float | None]:
        return [float(len(s.completion.text)) for s in samples]

    assert "padded" not in fooled_by(check_canaries(contains, [(PROMPT, GOOD)], 0.5))
    assert "padded" in fooled_by(check_canaries(longer, [(PROMPT, GOOD)], 1e6))


def test_one_prompt_of_two_is_counted() -> None:
    other = Prompt(id="other", text="Say nothing.")

    def silent(samples: Sequence[Sample]) -> list[float | None]:
        return [float(s.prompt.id == "other" and not s.completion.text) for s in samples]

    found = check_canaries(silent, [(PROMPT, None), (other, None)], 0.5)
    (empty,) = (result for result in found if not result.passed)
    assert (empty.name, empty.score, empty.fooled, empty.prompts) == ("empty", 1.0, 1, 2)


def test_a_canary_that_breaks_the_reward_hides_no_other() -> None:
    def fragile(samples: Sequence[Sample]) -> list[float | None]:
        if any(not s.completion.text for s in samples):
            return [None] * len(samples)
        return [float(s.completion.text in (GOOD, ":")) for s in samples]

    found = check_canaries(fragile, [(PROMPT, GOOD)], threshold=0.5)
    assert fooled_by(found) == {"master key ':'"}
    assert [r.name for r in found if r.score is None] == ["empty"]


def test_no_score_fools_nobody() -> None:
    (result,) = judge_canaries([CanaryScore(name="empty", prompt_id="sum", score=None)], 0.5)
    assert result.passed
    assert result.score is None


def scored(*values: float) -> list[CanaryScore]:
    return [CanaryScore(name="empty", prompt_id="sum", score=value) for value in values]


def test_the_bar_is_the_median_of_real_answers() -> None:
    assert threshold_of([0.0, 1.0, 3.0], scored(0.0)) == 1.0
    assert threshold_of([1.0, 1.0], scored(0.0)) == 1.0


def test_a_median_that_nothing_can_be_below_is_what_nothing_may_be_above() -> None:
    bar = threshold_of([0.0, 0.0, 1.0], scored(0.0))
    assert bar == math.nextafter(0.0, 1.0)
    assert judge_canaries(scored(0.0), bar)[0].passed
    assert not judge_canaries(scored(0.5), bar)[0].passed


def test_nothing_is_said_where_all_scores_are_equal() -> None:
    assert threshold_of([1.0, 1.0], scored(1.0)) is None
    assert threshold_of([], scored(1.0)) is None
    assert check_canaries(lambda samples: [1.0] * len(samples), [(PROMPT, None)], real=[1.0]) == []


# beside a policy's own answers


def answered(*texts: str, finish: str = "stop") -> list[RolloutGroup]:
    return [
        RolloutGroup(
            prompt=Prompt(id=str(place), text=f"Question {place}?"),
            prompt_ids=(1,),
            completions_G=(
                Completion(
                    token_ids=(1,),
                    logprobs_T=(0.0,),
                    text=text,
                    finish_reason=finish,  # type: ignore[arg-type]
                ),
            ),
            policy="p",
            seed=0,
        )
        for place, text in enumerate(texts)
    ]


def scorer(value: Callable[[str], float | None]) -> Callable[[Sequence[RolloutGroup]], Any]:
    """A rubric of one reward, which sees whole groups."""

    def score(groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        return [
            ScoredGroup(group=group, scores_G=tuple(
                Score(value=v, status="scored" if v is not None else "abstained")
                for v in (value(c.text) for c in group.completions_G)
            ))
            for group in groups
        ]  # fmt: skip

    return score


def test_a_sound_reward_stays_below_the_policys_own_answers() -> None:
    found = try_canaries(
        scorer(lambda t: float(t.endswith("because."))), answered(*["So, because."] * 4)
    )
    assert len(found) == 10
    assert fooled_by(found) == set()


def test_a_canary_is_counted_on_each_prompt_that_it_fooled() -> None:
    found = try_canaries(
        scorer(lambda t: 9.0 if not t else float(len(t) % 2)), answered("a", "bb", "c")
    )
    (empty,) = (one for one in found if one.name == "empty")
    assert (empty.fooled, empty.prompts, empty.score) == (3, 3, 9.0)


def test_an_answer_that_was_cut_is_not_cut_again() -> None:
    reward = scorer(lambda t: float("one" in t))
    names = {one.name for one in try_canaries(reward, answered("one two", "one", finish="length"))}
    assert "truncated" not in names and "padded" in names


def test_nothing_is_said_without_an_answer_or_a_difference() -> None:
    assert try_canaries(scorer(lambda _: 1.0), answered("a", "b")) == []
    assert try_canaries(scorer(lambda _: None), answered("a", "b")) == []
    assert try_canaries(scorer(len), answered("", "", finish="failed")) == []


def test_which_rewards_ask_a_model() -> None:
    assert asks_a_model("llm_judge", {})
    assert not asks_a_model("exact_match", {})
    assert not asks_a_model("agreement", {"of": ["exact_match", {"name": "length"}]})
    assert asks_a_model("agreement", {"of": ["length", {"name": "reward_model", "options": {}}]})
    assert not asks_a_model("agreement", {"of": 3}) and not asks_a_model("mine.py:f", {})
    assert {name for name in REWARDS if asks_a_model(name, {})} == {
        "reward_model", "preference_model", "llm_judge", "pairwise_judge"
    }  # fmt: skip
