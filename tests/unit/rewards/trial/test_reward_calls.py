"""Rewards are tried before they are paid for: ``config check`` calls each once, a trial ends in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.config.campaign import CampaignConfig
from align.report.forecast.check import check_campaign
from rewards import patience
from rewards.base import RewardPart
from rewards.trial import first_call
from rewards.trial.data import read_samples
from rewards.trial.trial import TrialSpec, try_reward
from rollouts.errors import UserError
from rollouts.types import Prompt
from tests.unit.campaigns import raw_campaign
from tests.unit.decided import keel

ROWS = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(30)]
GOOD = "def reward(completions, answer, **_):\n    return [1.0 for _ in completions]\n"
BAD = {
    "raises": (
        "def reward(completions, answer, **_):\n    return [float(answer[0]['x'])]\n",
        "TypeError: string indices must be integers",
    ),
    "has too few values": ("def reward(completions, answer, **_):\n    return []\n", "0"),
    "is no number": ("def reward(completions, **_):\n    return ['good']\n", "number or None"),
    "hangs": (
        "import time\n\ndef reward(completions, **_):\n    time.sleep(600)\n",
        "no answer within",
    ),
    "ends its process": (
        "import os\n\ndef reward(completions, **_):\n    os._exit(3)\n",
        "exit",
    ),
}


def with_reward(
    folder: Path, code: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    (folder / "mine.py").write_text(code)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "held.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} + 7 =", "answer": "x"}) + "\n" for n in range(40, 70))
    )
    reward = {"name": "mine.py:reward", **settings}
    first = {"name": "first", "prompts": "rows.jsonl", "rewards": [reward], "steps": 1,
             "suite": {"prompts": "held.jsonl", "items": 30}}  # fmt: skip
    return raw_campaign(folder, rounds=[first], suites=[], defaults={"sampling": {"max_tokens": 6}})


ASKED = {
    "text": Prompt(id="1", text="Ask for the salt."),
    "messages": Prompt(id="1", messages=({"role": "user", "content": "Ask for the salt."},)),
}
TAKES: dict[str, Callable[[Any], float]] = {
    "text": lambda completion: float("please" in completion.lower()),
    "messages": lambda completion: float("please" in completion[0]["content"].lower()),
}
SHAPES = {"text": "and so is every completion", "messages": "completion[0]['content']"}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("takes", TAKES)
def test_a_reward_for_the_other_shape_of_completions_is_told_the_shape(
    asked: str, takes: str
) -> None:
    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [TAKES[takes](completion) for completion in completions]

    part = RewardPart(name="mine", weight=1.0, function=reward)
    if asked == takes:
        first_call.call_once(part, "mine", ASKED[asked], "rewards.0", print)
        return
    with pytest.raises(UserError) as caught:
        first_call.call_once(part, "mine", ASKED[asked], "rewards.0", print)
    assert SHAPES[asked] in str(caught.value)


@pytest.mark.parametrize("kind", ["has too few values", "is no number"])
def test_the_shape_is_told_of_what_raised_alone(kind: str) -> None:
    namespace: dict[str, Any] = {}
    exec(BAD[kind][0], namespace)
    part = RewardPart(name="mine", weight=1.0, function=namespace["reward"])
    prompt = replace(ASKED["text"], columns={"answer": "1"})
    with pytest.raises(UserError) as caught:
        first_call.call_once(part, "mine", prompt, "rewards.0", print)
    assert not any(shape in str(caught.value) for shape in SHAPES.values())


@pytest.mark.parametrize("kind", BAD)
def test_a_reward_that_fails_is_found_by_the_check(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = BAD[kind]
    monkeypatch.setattr(first_call, "LIMIT_S", 0.5)
    campaign = with_reward(tmp_path, code, monkeypatch)
    (tmp_path / "campaign.yaml").write_text(json.dumps(campaign))
    exit_code, out, error = keel("config", "check", str(tmp_path / "campaign.yaml"))
    assert (exit_code, out) == (2, "")
    assert "reward 'mine.py:reward' failed on a row of the round" in error
    assert "rows.jsonl:1" in error
    assert words in error
    assert "Traceback (most recent call last)\n" not in error
    assert not (tmp_path / "store").exists()


def test_a_reward_that_answers_or_abstains_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (GOOD, GOOD.replace("1.0", "None")):
        campaign = with_reward(tmp_path, code, monkeypatch)
        checked = check_campaign(CampaignConfig.model_validate(campaign))
        assert not any("was not called" in line for line in checked.lines)


def test_what_costs_money_is_called_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = BAD["raises"][0]
    campaign = with_reward(tmp_path, failing, monkeypatch, environment=["JUDGE_KEY"])
    config = CampaignConfig.model_validate(campaign)
    (line,) = (line for line in check_campaign(config).lines if "was not called" in line)
    assert line == (
        "reward mine.py:reward of round first was not called: it is given JUDGE_KEY (--call-models calls "
        "it)"
    )
    with pytest.raises(UserError, match="failed on a row"):
        check_campaign(config, models=True)


def test_a_trial_of_a_reward_that_hangs_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reward(tmp_path, BAD["hangs"][0], monkeypatch)
    data = tmp_path / "tried.jsonl"
    data.write_text("".join(json.dumps({**row, "completion": "2"}) + "\n" for row in ROWS))
    said: list[str] = []
    monkeypatch.setattr(patience, "QUIET_S", 0.05)
    spec = TrialSpec(name="mine.py:reward", deadline_s=1.5)
    trial = try_reward(spec, read_samples(str(data)), say=said.append)
    assert (trial.samples, trial.failed) == (1, 1)
    assert "29 more groups were not tried" in trial.notes[-1]
    assert "waiting for reward reward (deadline 1.5 s)" in said


def test_a_trial_has_a_deadline_of_seconds_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reward(tmp_path, GOOD, monkeypatch)
    data = tmp_path / "tried.jsonl"
    data.write_text(json.dumps({**ROWS[0], "completion": "2"}))
    trial = try_reward(TrialSpec(name="mine.py:reward"), read_samples(str(data)))
    assert trial.isolation == ("reward reward: process (1 worker, 5 s a batch, 4 GiB)",)


@pytest.mark.parametrize(("code", "expected"), [(GOOD, 0), (BAD["raises"][0], 1)])
def test_the_exit_code_of_a_trial(
    code: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reward(tmp_path, code, monkeypatch)
    data = tmp_path / "tried.jsonl"
    data.write_text("".join(json.dumps({**row, "completion": "2"}) + "\n" for row in ROWS[:3]))
    for json_flag in ((), ("--json",)):
        exit_code, out, _ = keel(
            "reward", "test", "mine.py:reward", "--data", str(data), *json_flag
        )
        assert exit_code == expected
        assert out, "what came of it is shown in any case"
