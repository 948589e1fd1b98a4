"""Rewards that raise, hang, crash or lie: the guilty sample fails, its neighbours are scored."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.base import Sample
from rewards.failures import RewardFailure
from rewards.rubric import Rubric
from rollouts.errors import RunError, UserError
from tests.chaos.rewards.rubrics import TRAPS, group, kinds, rubric_of, scores
from tests.patience import patient

LATE = f"no answer within {patient(0.5):g} s"


@pytest.fixture(scope="module")
def one_by_one() -> Iterator[Rubric]:
    """Each sample has its own deadline, so the guilty one is known at once."""
    rubric = rubric_of("spring", deadline_s=8.0, sample_deadline_s=0.5)
    yield rubric
    rubric.close()


@pytest.mark.parametrize(
    ("trap", "kind", "reason"),
    [
        ("sleeps", "deadline", LATE),
        ("loops", "deadline", LATE),
        ("ignores_signals", "deadline", LATE),
        ("exits", "crash", "the worker exited with code 0"),
        ("segfaults", "crash", "the worker crashed with SIGSEGV"),
        ("aborts", "crash", "the worker crashed with SIGABRT"),
        ("is_killed", "killed", "the worker was killed by SIGKILL"),
        ("allocates", "memory", "MemoryError"),
        ("raises", "raised", "ZeroDivisionError: sample 7"),
        ("leaves", "raised", "SystemExit: bye"),
        ("interrupts", "raised", "KeyboardInterrupt"),
        ("closes_everything", "crash", "the worker"),
    ],
)
def test_only_the_guilty_sample_fails(
    one_by_one: Rubric, trap: str, kind: str, reason: str
) -> None:
    before = kinds(one_by_one).get(kind, 0)
    *first, guilty, last = scores(one_by_one, group("a", "bb", trap, "cccc"))
    assert [score.value for score in (*first, last)] == [1.0, 2.0, 4.0]
    assert guilty.status == "failed" and guilty.detail is not None and reason in guilty.detail
    assert kinds(one_by_one)[kind] == before + 1


def test_without_deadlines_per_sample_calls_shrink_to_the_guilty_one() -> None:
    rubric = rubric_of("spring", deadline_s=60.0)
    texts = ["a"] * 6 + ["segfaults"] + ["bb"] * 9
    found = scores(rubric, group(*texts[:8]), group(*texts[8:]))
    assert [score.value for score in found] == [1.0] * 6 + [None] + [2.0] * 9
    assert kinds(rubric) == {"crash": 1}
    assert rubric.metrics["spring/restarts"] == 3  # after calls of 16, of 2 and of 1
    assert "in segfaults" in rubric.failures.first["spring"]
    rubric.close()


def test_a_batch_that_hangs_ends_at_its_deadline_with_the_others_scored() -> None:
    rubric = rubric_of("spring", deadline_s=6.0)
    found = scores(rubric, group("a", "sleeps", "bb"))
    assert [score.value for score in found] == [1.0, None, 2.0]
    assert kinds(rubric) == {"deadline": 1}
    rubric.close()


def test_a_raise_fails_its_call_whole() -> None:
    rubric = rubric_of("spring")
    found = scores(rubric, group(*"abcdef", "raises", "h"))
    assert {score.detail for score in found} == {"spring: ZeroDivisionError: sample 7"}
    assert kinds(rubric) == {"raised": 8}
    rubric.close()


def test_a_forged_answer_is_no_answer(one_by_one: Rubric) -> None:
    good, bad, other = scores(one_by_one, group("a", "forges", "bb"))
    assert good.value == 1.0
    assert bad.detail is not None and "the worker's answer is malformed" in bad.detail
    assert other.status == "failed"  # nothing that this worker says is believed any more
    assert scores(one_by_one, group("ccc"))[0].value == 3.0


def test_values_that_are_no_numbers() -> None:
    rubric = rubric_of("odd")
    found = scores(rubric, group("fine", "nan", "inf", "str", "list", "huge", "none"))
    assert [score.status for score in found] == ["scored", *["failed"] * 5, "abstained"]
    assert [score.detail for score in found[1:4]] == [
        "odd: returned nan, expected a finite number",
        "odd: returned inf, expected a finite number",
        "odd: returned a str, expected a number or None",
    ]
    for text, said in (("short", "returned 1 values for 2"), ("text", "returned str, expected a")):
        found = scores(rubric, group(text, "other"))
        assert all(said in (score.detail or "") for score in found)
    rubric.close()


def test_tensors_are_read_one_by_one() -> None:
    rubric = rubric_of("tensors", deadline_s=120.0, memory_gib=16)
    good, bad = scores(rubric, group("cpu", "meta"))
    assert (good.value, bad.status) == (1.0, "failed")
    rubric.close()


def test_what_a_reward_prints_is_kept_to_its_last_words() -> None:
    rubric = rubric_of("prints", deadline_s=60.0)
    assert scores(rubric, group("a"))[0].value == 1.0
    (score,) = scores(rubric, group("end"))
    assert score.detail == "prints: the worker exited with code 3"
    trace = rubric.failures.first["prints"]
    assert trace.endswith("the last word") and len(trace) < 20_000
    rubric.close()


def test_a_closed_stdout_disturbs_nothing() -> None:
    rubric = rubric_of("closes_stdout")
    assert scores(rubric, group("a", "b"))[0].value == 1.0
    rubric.close()


def test_a_spoilt_process_spoils_no_other() -> None:
    dumps, clock, length = json.dumps, time.monotonic, len
    rubric = rubric_of("vandal")
    scores(rubric, group("a", "b"))
    assert (json.dumps, time.monotonic, len) == (dumps, clock, length)
    assert json.loads(json.dumps({"a": len([1])})) == {"a": 1}
    rubric.close()


def test_numbers_that_cannot_be_compared_are_plain_ones_outside() -> None:
    rubric = rubric_of("hostile")
    found = scores(rubric, group("a", "bb"), group("ccc"))
    assert [score.value for score in found] == [1.0, 2.0, 3.0]
    assert all(type(score.value) is float for score in found)
    sample, other = (Sample(prompt=group(t).prompt, completion=group(t).completions_G[0])
                     for t in "ab")  # fmt: skip
    assert sample != other
    rubric.close()


def test_async_rewards_meet_the_same_deadlines() -> None:
    rubric = rubric_of("slow", deadline_s=8.0, sample_deadline_s=0.5)
    good, late = scores(rubric, group("a", "slow"))
    assert (good.value, late.detail) == (1.0, f"slow: {LATE}")
    assert rubric.metrics["slow/restarts"] == 0  # a reward that awaits is cancelled, not killed
    rubric.close()

    rubric = rubric_of("never_awaits", deadline_s=8.0, sample_deadline_s=0.5)
    found = scores(rubric, group("a", "sleeps", "b"))
    assert [score.value for score in found] == [1.0, None, 1.0]
    assert kinds(rubric) == {"deadline": 1}
    rubric.close()


def test_columns_of_the_owner_stay_as_they_are() -> None:
    rubric = rubric_of("spoils_column")
    shown = group("a", "b", answer=["x"])
    assert [score.value for score in scores(rubric, shown)] == [2.0, 2.0]
    assert shown.prompt.columns == {"answer": ["x"]}
    (score,) = scores(rubric, group("a", answer={1, 2}))
    assert score.detail is not None and "column 'answer' holds a set" in score.detail
    assert kinds(rubric) == {"column": 1}
    rubric.close()


def test_an_input_that_ends_workers_twice_is_not_tried_again(one_by_one: Rubric) -> None:
    assert scores(one_by_one, group("a", "exits"))[1].status == "failed"
    *_, again = scores(one_by_one, group("a", "exits"))
    assert again.detail is not None
    found = scores(one_by_one, group("exits", "bb"))
    assert found[0].detail == ("spring: quarantined after two tries: the worker exited with code 0")
    assert found[1].value == 2.0
    assert one_by_one.metrics["spring/quarantined"] == 1
    assert one_by_one.metrics["spring/restarts"] == 0


def test_the_circuit_breaker_names_reward_classes_and_traceback() -> None:
    rubric = rubric_of("spring", deadline_s=8.0, sample_deadline_s=0.5)
    scores(rubric, group("a", "segfaults", "sleeps", "segfaults "))
    with pytest.raises(RewardFailure) as caught:
        rubric.failures.check_budget(0.05)
    message = str(caught.value)
    assert "reward 'spring' failed on 2 of 4 samples" in message
    assert "1 crash" in message and "1 deadline" in message
    assert "traps.py" in message
    rubric.close()


def test_errors_for_people_pass() -> None:
    rubric = rubric_of("asks_a_person")
    with pytest.raises(UserError, match="install the judge"):
        scores(rubric, group("a"))
    rubric.close()


def test_a_reward_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("raise RuntimeError('no key')")
    with pytest.raises(UserError, match="cannot import") as caught:
        _build(f"{bad}:f")
    assert "no key" in str(caught.value)
    bad.write_text("import os; os._exit(5)")
    with pytest.raises(RunError, match=r"no worker could be started for reward .*bad.py:f") as gone:
        _build(f"{bad}:f")
    assert "exited with code 5" in str(gone.value)


def test_an_entry_point_that_raises_on_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "broken_rewards-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-rewards\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text(
        "[keel.rewards]\nbroken = broken_rewards:f\nworking = working_rewards:f\n"
    )
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('no key')")
    (tmp_path / "working_rewards.py").write_text(
        "def f(completion: str) -> float:\n    return 1 / len(completion)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'broken' of broken-rewards 1\.0 .* cannot be imported"):
        _build("broken")
    rubric = _build("working")
    assert [score.value for score in scores(rubric, group("ab", "", "a"))] == [0.5, None, 1.0]
    assert kinds(rubric) == {"raised": 1}
    rubric.close()


def test_two_rewards_with_one_name() -> None:
    with pytest.raises(UserError, match="two parts are named 'odd'"):
        _build(f"{TRAPS}:odd", f"{TRAPS}:odd")


def test_scoring_from_a_running_loop() -> None:
    rubric = rubric_of("spring")

    async def notebook() -> list[float | None]:
        return [score.value for score in scores(rubric, group("ab"))]

    assert asyncio.run(notebook()) == [2.0]
    rubric.close()


def _build(*names: str) -> Rubric:
    from align.config.campaign import RewardConfig
    from rewards.rubric import build_rubric

    return build_rubric([RewardConfig(name=name) for name in names])
