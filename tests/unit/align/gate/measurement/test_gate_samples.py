"""Repeated completions of one item become one value, and impossible values are refused."""

from __future__ import annotations

import pytest

from align.gate.measurement.samples import checked, episode_figures, merged
from rollouts.types import Completion, FinishReason, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.episodes import episode, scored


def group(*answers: tuple[float | None, FinishReason], id: str = "p") -> ScoredGroup:
    completions = tuple(
        Completion(token_ids=(i,), logprobs_T=(-1.0,), text=str(i), finish_reason=finish)
        for i, (_, finish) in enumerate(answers)
    )
    scores = tuple(
        Score(value=None, status="failed" if finish == "failed" else "abstained", detail="why")
        if value is None
        else Score(value=value, status="scored")
        for value, finish in answers
    )
    rolled = RolloutGroup(
        prompt=Prompt(id=id, text=id),
        prompt_ids=(1,),
        completions_G=completions,
        policy="s",
        seed=0,
    )
    return ScoredGroup(group=rolled, scores_G=scores)


def test_an_item_is_worth_the_mean_of_its_completions() -> None:
    (one,) = merged([group((1.0, "stop"), (0.0, "stop"), (1.0, "stop"), (1.0, "length"))], None)
    assert (one.value, one.status) == (0.75, "scored")
    assert (one.completion.text, one.completion.finish_reason) == ("0", "length")


def test_one_completion_stays_what_it_is() -> None:
    one, two = merged([group((0.5, "stop")), group((None, "failed"))], None)
    assert (one.value, one.status, one.completion.finish_reason) == (0.5, "scored", "stop")
    assert (two.value, two.status, two.completion.finish_reason) == (None, "failed", "failed")


def test_a_completion_without_a_score_counts_as_the_worst_and_is_told() -> None:
    """The worst of the suite is -2: (1 - 2) / 2 and not 1."""
    one, two = merged(
        [group((1.0, "stop"), (None, "stop")), group((-2.0, "stop"), (0.0, "stop"))], None
    )
    assert (one.value, one.status, one.detail) == (-0.5, "abstained", "why")
    assert (two.value, two.status) == (-1.0, "scored")


def test_a_value_outside_the_range_names_the_item() -> None:
    with pytest.raises(ValueError, match=r"item 'q' got 1.5, outside 0 to 1"):
        merged([group((1.0, "stop")), group((1.5, "stop"), id="q")], (0.0, 1.0))
    assert merged([group((1.5, "stop"))], (0.0, 2.0))[0].value == 1.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_averaged_is_a_failure(value: float) -> None:
    found = checked(Score(value=value, status="scored"), (0.0, 1.0))
    assert (found.value, found.status) == (None, "failed")


def test_figures_of_episodes_stand_beside_the_mean() -> None:
    """Rewards 1, .5 and none: of the two that are rewarded one succeeded."""
    groups = [
        scored(
            episode((4,), (9,), (5,), calls=1, reward=1.0),
            episode((4,), reward=0.5),
            episode((4,), (9,), (5,), (9,), (6,), calls=5, failed_calls=3),
            values=(1.0, 0.5, 0.0),
        ).group
    ]
    assert episode_figures(groups) == {
        "success": 0.5, "turns": 2.0, "calls": 2.0, "failed calls": 1.0,
    }  # fmt: skip
    assert episode_figures([group((1.0, "stop")).group]) == {}
