"""Isolation without processes: settings, frames, the cutting of batches, and who is suspected."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.config.campaign import RewardConfig
from rewards.base import Sample
from rewards.call import PartFailure
from rewards.isolation.batch import Clock, Suspects, WorkerBatch, pieces_of
from rewards.isolation.levels import Isolation, isolation_of
from rewards.isolation.protocol import (
    Malformed,
    WorkerAnswer,
    holds,
    pack_answer,
    pack_request,
    pack_sample,
    pack_state,
    read_answer,
    receive,
    send,
    send_message,
    unpack_sample,
)
from rewards.isolation.sandbox import limits, sandbox
from rewards.registry import find_reward
from rewards.signatures.parameters import Parameters
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt

ALL = Parameters(names=(), required=(), anything=True)


def resolved(name: str, **fields: Any) -> Isolation:
    config = RewardConfig(name=name, **fields)
    return isolation_of(config, find_reward(name).level, "rounds.0.rewards.0")


def test_what_ships_is_trusted_and_nothing_else() -> None:
    assert resolved("length") == Isolation(level="inline")
    assert resolved("mine.py:f").level == "process"
    assert resolved("pkg.mod:f", isolation="inline").level == "inline"
    assert resolved("length", isolation="sandbox").level == "sandbox"
    assert resolved("code_tests").level == "sandbox"
    given = resolved("mine.py:f", deadline_s=5, workers=3, memory_gib=math.inf)
    assert (given.deadline_s, given.workers, given.memory_gib) == (5.0, 3, None)
    assert resolved("mine.py:f").memory_gib == 4.0


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="runs inline, where deadline_s means nothing") as caught:
        resolved("length", deadline_s=3)
    assert caught.value.where == "rounds.0.rewards.0"
    with pytest.raises(ValidationError, match="longer than deadline_s 3"):
        RewardConfig(name="f.py:f", deadline_s=3, sample_deadline_s=4)
    with pytest.raises(ValidationError):
        RewardConfig(name="f.py:f", deadline_s=math.inf)


def test_what_a_part_runs_under_is_one_line() -> None:
    assert Isolation().line("a") == "reward a: inline (in this process, trusted, no deadline)"
    made = Isolation(level="sandbox", workers=2, memory_gib=None, environment=("KEY",))
    assert made.line("b") == "reward b: sandbox (2 workers, 120 s a batch, any memory, sees KEY)"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(value=JSON)
def test_what_json_holds_comes_back(value: Any) -> None:
    assert holds(value)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {1, 2}}, [b"x"], object(), 1j])
def test_what_json_would_change_is_not_held(value: Any) -> None:
    assert not holds(value)


@given(
    text=st.text(),
    chat=st.booleans(),
    ids=st.lists(st.integers(0, 9)),
    columns=st.dictionaries(st.text(), JSON),
)
def test_a_sample_arrives_as_it_was_sent(
    text: str, chat: bool, ids: list[int], columns: dict[str, Any]
) -> None:
    messages = ({"role": "user", "content": text},) if chat else None
    sample = Sample(
        prompt=Prompt(id="", text=None if chat else text, messages=messages, columns=columns),
        completion=Completion(token_ids=tuple(ids), logprobs_T=(), text=text, finish_reason="stop"),
    )
    packed = pack_sample(sample, ALL, list(columns))
    assert isinstance(packed, str)
    assert unpack_sample(json.loads(packed)) == sample


def test_only_what_a_reward_takes_is_sent() -> None:
    prompt = Prompt(id="q", text="secret", columns={"answer": "4", "image": {1}})
    completion = Completion(token_ids=(1, 2), logprobs_T=(), text="four", finish_reason="stop")
    sample = Sample(prompt=prompt, completion=completion)
    takes = Parameters(names=("completions", "answer"), required=(), anything=False)
    packed = pack_sample(sample, takes, ["answer", "image"])
    assert isinstance(packed, str)
    assert json.loads(packed) == {"completion": "four", "columns": {"answer": "4"}, "text": ""}
    refused = pack_sample(sample, ALL, ["answer", "image"])
    assert isinstance(refused, PartFailure) and refused.kind == "column"
    assert refused.reason.startswith("column 'image' holds a set")


def test_the_trainers_state_is_sent_as_far_as_json_holds_it() -> None:
    class State:
        def __init__(self) -> None:
            self.step, self.model, self._own = 3, object(), 1

    assert json.loads(pack_state(State())) == {"step": 3}
    assert pack_state(None) == "null"


def test_frames_arrive_whole_and_in_order() -> None:
    left, right = socket.socketpair()
    with left, right:
        send_message(left, {"a": "x" * 100_000})
        send(left, pack_request(2, ['{"completion":"y"}'], "null"))
        assert receive(right) == {"a": "x" * 100_000}
        assert receive(right) == {"id": 2, "state": None, "rows": [{"completion": "y"}]}
        with pytest.raises(TimeoutError):
            receive(right, until=0.0)
        left.close()
        with pytest.raises(EOFError):
            receive(right)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\0\0\0\2xx", b"\0\0\0\2[]", b"\0\0\0\2\xff\xff"],
)
def test_noise_is_no_frame(data: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(data)
        with pytest.raises(Malformed):
            receive(right)


def test_an_answer_arrives_as_it_was_given() -> None:
    failure = PartFailure(reason="no", trace="Traceback", kind="memory")
    answer = WorkerAnswer(
        outcomes=[1.0, None, failure], metrics=[("m", 2.0)], extras={"e": [1, "a", object()]}
    )
    found = read_answer(json.loads(json.dumps(pack_answer(7, answer))), 7, most=3)
    assert found.outcomes == answer.outcomes and found.metrics == answer.metrics
    assert found.extras["e"][:2] == [1, "a"] and "object" in found.extras["e"][2]


@pytest.mark.parametrize(
    "changed",
    [
        {"id": 6},
        {"outcomes": []},
        {"outcomes": [1.0, 2.0]},
        {"outcomes": [True]},
        {"outcomes": ["1"]},
        {"outcomes": [math.nan]},
        {"outcomes": [{"reason": "r", "trace": "t", "kind": "joke"}]},
        {"outcomes": [{"reason": "r"}]},
        {"outcomes": 3},
        {"metrics": [["m"]]},
        {"metrics": [["m", "x"]]},
        {"extras": []},
    ],
)
def test_what_is_no_answer_is_refused(changed: dict[str, Any]) -> None:
    good = {"id": 7, "outcomes": [1.0], "metrics": [], "extras": {}}
    assert read_answer(good, 7, most=1).outcomes == [1.0]
    with pytest.raises(Malformed):
        read_answer({**good, **changed}, 7, most=1)


@given(sizes=st.lists(st.integers(1, 9), max_size=12), count=st.integers(1, 12))
def test_a_batch_is_cut_between_groups(sizes: list[int], count: int) -> None:
    group_B = [group for group, size in enumerate(sizes) for _ in range(size)]
    pieces = pieces_of(range(len(group_B)), count, group_B)
    assert [index for piece in pieces for index in piece] == list(range(len(group_B)))
    owners = [{group_B[index] for index in piece} for piece in pieces]
    assert sum(len(owner) for owner in owners) == len(sizes)
    assert all(pieces)


def test_pieces_are_about_equal() -> None:
    assert [len(piece) for piece in pieces_of(range(64), 8)] == [8] * 8
    assert [len(piece) for piece in pieces_of(range(3), 8)] == [1] * 3
    groups = [index // 8 for index in range(512)]
    assert [len(piece) for piece in pieces_of(range(512), 8, groups)] == [64] * 8


def test_an_input_is_held_after_two_strikes() -> None:
    suspects = Suspects()
    failure = PartFailure.of("no answer within 1 s", "deadline")
    suspects.strike("a", failure)
    assert (suspects.strikes("a"), suspects.strikes("b")) == (1, 0)
    assert suspects.quarantined("a") is None
    suspects.strike("a", failure)
    held = suspects.quarantined("a")
    assert held is not None and held.kind == "quarantined"
    assert held.reason == "quarantined after two tries: no answer within 1 s"


def test_a_batch_is_done_when_every_sample_is_decided_once() -> None:
    batch = WorkerBatch(packed_B=["a", "b", "c"], state="null", clock=Clock(9.0))
    batch.decide([2, 0], [3.0, None])
    assert (batch.open_of([0, 1, 2]), batch.done.is_set()) == ([1], False)
    batch.decide([0, 1], [5.0, 2.0])
    assert batch.outcomes_B == [None, 2.0, 3.0] and batch.done.is_set()
    batch.take([1], WorkerAnswer(outcomes=[], metrics=[("m", 2.0)], extras={"e": ["b"]}), 0.5)
    batch.take([0], WorkerAnswer(outcomes=[], metrics=[("m", 1.0)], extras={"e": ["a"]}), 0.25)
    assert batch.metrics() == [("m", 1.0), ("m", 2.0)]
    assert batch.busy_s == 0.75
    assert batch.extras_B() == [{"e": "a"}, {"e": "b"}, {}]
    assert batch.extras() == {"e": ["a", "b"]}
    assert WorkerBatch(packed_B=[], state="null", clock=Clock(1.0)).done.is_set()


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "RAY_ADDRESS", "AWS_SECRET_ACCESS_KEY", "JUDGE_KEY"):
        monkeypatch.setenv(name, "secret")
    seen = limits.environment(Path("/scratch"), granted=["JUDGE_KEY", "ABSENT"])
    assert seen["HOME"] == seen["TMPDIR"] == "/scratch"
    assert seen["JUDGE_KEY"] == "secret"
    assert set(seen) <= {*limits.SEEN, "HOME", "TMPDIR", "PYTHONPATH", "JUDGE_KEY"}


def test_a_sandbox_shows_the_code_of_the_reward_and_no_more(tmp_path: Path) -> None:
    *ours, theirs = sandbox.visible("sub/mine.py:f", tmp_path)
    assert theirs == str(tmp_path / "sub" / "mine.py")
    assert [Path(path).name for path in ours] == ["rewards", "rollouts"]
    assert sandbox.visible("numpy.linalg:norm", tmp_path)[-1].endswith("numpy")
    assert sandbox.visible("nowhere.at.all:f", tmp_path) == tuple(ours)
