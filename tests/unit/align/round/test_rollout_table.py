"""What a step said and what it was worth: written by every round, bounded, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.algorithms.rows import row_of
from align.campaign import run_campaign
from align.report.html.items import said_of
from align.report.html.limits import Limits
from align.report.printable import printable
from align.round.rollout_table import (
    find_table,
    forget_prompts,
    load_records,
    ordered,
    prune,
    records_of,
    save_records,
)
from align.store.paths import StorePaths
from align.store.run_folder import RunFolder
from launch import cli
from rewards.base import RewardPart
from rewards.rubric import Rubric
from rollouts.errors import RunError, UserError
from rollouts.types import Completion, Prompt, RolloutGroup, ScoredGroup, WeightSpan
from tests.unit.campaigns import Starter, Watcher, campaign, raw_campaign, rounds
from tests.unit.episodes import episode

Keel = Callable[..., tuple[int, str, str]]


def said(text: str, *ids: int, finish: Any = "stop") -> Completion:
    return Completion(
        token_ids=ids, logprobs_T=(0.0,) * len(ids), text=text, finish_reason=finish,
        weight_versions=(WeightSpan("first/3", 0, len(ids)),),
    )  # fmt: skip


def curious(completions: list[str], log_extra: Any) -> list[Any]:
    log_extra("words", [len(c.split()) for c in completions])
    log_extra("odd", [{"seen": c} for c in completions])
    return [
        None if c == "?" else float("nan") if c == "bad" else float(len(c)) for c in completions
    ]


def scored(*completions: Completion) -> list[ScoredGroup]:
    prompt = Prompt(id="p1", text="Why?", source="past", owner="f00", round="first")
    group = RolloutGroup(
        prompt=prompt, prompt_ids=(7,), completions_G=completions, policy="first/3", seed=0
    )
    part = RewardPart(name="curious", weight=2.0, function=curious)
    return Rubric([part]).score([group])


SAMPLES = scored(
    said("a b", 1, 2), said("bad", 3), said("?", 4), said("long", 5, 6, 7, finish="length"),
    Completion.failed("engine died"),
)  # fmt: skip


def test_a_record_holds_all_that_is_known_of_a_sample(tmp_path: Path) -> None:
    rows = [
        row_of(SAMPLES[0].group, c, 0.25 * i) for i, c in enumerate(SAMPLES[0].group.completions_G)
    ]
    save_records(tmp_path / "a.parquet", records_of(SAMPLES, rows[:1]))
    first, bad, unsure, cut, lost = load_records(tmp_path / "a.parquet")
    assert first == {
        "group": 0, "sample": 0, "prompt_id": "p1", "source": "past", "owner": "f00",
        "round": "first", "prompt": "Why?", "completion": "a b", "tokens": 2, "finish": "stop",
        "version": "first/3", "status": "scored", "value": 6.0, "detail": None, "advantage": 0.0,
        "reward/curious": 3.0, "term/curious": 3.0, "why/curious": None,
        "extra/curious/words": 2, "extra/curious/odd": '{"seen": "a b"}',
    }  # fmt: skip
    assert (bad["status"], bad["value"]) == ("failed", None)
    assert bad["why/curious"] == "returned nan, expected a finite number"
    assert (unsure["status"], unsure["term/curious"]) == ("abstained", None)
    assert (cut["finish"], cut["tokens"], cut["advantage"]) == ("length", 3, None)
    assert lost["detail"] == "no completion: engine died"


def test_equal_completions_get_their_advantages_in_order() -> None:
    twins = scored(said("a", 1), said("a", 1))
    one, other = twins[0].group.completions_G
    rows = [row_of(twins[0].group, one, 0.5), row_of(twins[0].group, other, -0.5)]
    assert [r["advantage"] for r in records_of(twins, rows)] == [0.5, -0.5]


def test_half_a_surrogate_pair_does_not_end_a_round(tmp_path: Path) -> None:
    save_records(tmp_path / "a.parquet", records_of(scored(said("x\ud800", 1))))
    assert load_records(tmp_path / "a.parquet")[0]["completion"] == "x?"


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="cannot be read") as caught:
        load_records(tmp_path / "a.parquet")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("by", "worst", "texts"),
    [
        ("reward", False, ["long", "a b"]),
        ("reward", True, ["a b", "long"]),
        ("length", False, ["long", "a b"]),
        ("curious", True, ["a b", "long"]),
    ],
)
def test_the_order_of_samples(by: str, worst: bool, texts: list[str]) -> None:
    """Samples without a number stay last in both directions."""
    found = [r["completion"] for r in ordered(records_of(SAMPLES), by, worst=worst)]
    assert [text for text in found if text in texts] == texts
    if by != "length":
        assert set(found[2:]) == {"bad", "?", ""}


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(UserError, match="no part 'curios'") as caught:
        ordered(records_of(SAMPLES), "curios")
    assert "did you mean 'curious'?" in str(caught.value)


def test_only_the_last_steps_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.table(0).parent.mkdir()
    for step in range(12):
        folder.table(step).touch()
    prune(folder, "all")
    assert len(folder.tables()) == 12
    prune(folder, 3)
    assert list(folder.tables()) == [9, 10, 11]
    prune(folder, 5)
    assert len(folder.tables()) == 3


# what a round leaves, and the command that shows it


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of one round of four steps that keeps the last two."""
    folder = tmp_path_factory.mktemp("rollouts")
    changes = {"rounds": rounds({"steps": 4}), "keep_rollouts": 2}
    (folder / "campaign.yaml").write_text(json.dumps(raw_campaign(folder, **changes)))
    run_campaign(campaign(folder, **changes), start_engine=Starter(), observer=Watcher())
    return folder


@pytest.fixture
def keel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path) -> Keel:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(
            "sys.argv", ["keel", "rollouts", "show", str(store / "campaign.yaml"), *arguments]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capsys.readouterr()
        return int(caught.value.code or 0), out, error

    return call


def test_a_round_writes_a_table_of_every_step_it_keeps(store: Path) -> None:
    folder = store / "store/rounds/00-round0/attempt-1/rollouts"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-0002.parquet", "step-0003.parquet",
    ]  # fmt: skip
    records = load_records(folder / "step-0003.parquet")
    assert len(records) == 20
    new = [r for r in records if r["source"] == "new"]
    assert len(new) == 16
    assert {r["version"] for r in records} == {"00-round0.1/3"}
    assert all(r["value"] == r["reward/exact_match"] for r in new)
    assert all(abs(sum(r["advantage"] for r in new[i : i + 4])) < 1e-9 for i in (0, 4, 8, 12))
    assert {r["status"] for r in records if r["source"] == "general"} == {"abstained"}


def test_none_keeps_none_and_the_setting_decides_nothing(tmp_path: Path) -> None:
    changes = {"rounds": rounds({}), "keep_rollouts": "none"}
    config = campaign(tmp_path, **changes)
    assert config.hash() == campaign(tmp_path, rounds=rounds({})).hash()
    run_campaign(config, start_engine=Starter(), observer=Watcher())
    assert not list((tmp_path / "store/rounds").rglob("rollouts"))
    with pytest.raises(UserError, match="no rollouts of round 'round0' are kept"):
        find_table(config, "round0", None)


def test_show_prints_the_best_and_the_worst(keel: Keel) -> None:
    code, out, _ = keel("round0", "--step", "2", "--top", "3", "--by", "exact_match")
    assert code == 0
    assert "round0, step 2: 20 samples, 16 scored, 4 abstained" in out
    assert "exact_match" in out and "rev _" in out
    best = json.loads(keel("round0", "--top", "16", "--json")[1])
    assert (best["round"], best["step"], len(best["samples"])) == ("round0", 3, 16)
    worst = json.loads(keel("round0", "--top", "1", "--by", "reward", "--worst", "--json")[1])
    values = [sample["value"] for sample in best["samples"]]
    assert values == sorted(values, reverse=True)
    assert worst["samples"][0]["value"] == values[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rond0"], "did you mean 'round0'?"),
        (["round0", "--step", "0"], "kept are 2 to 3"),
        (["round0", "--by", "exact_mach"], "did you mean 'exact_match'?"),
        (["round0", "--top", "0"], "invalid value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_exits_2(keel: Keel, arguments: list[str], words: str) -> None:
    code, out, error = keel(*arguments)
    assert (code, out) == (2, "")
    assert words in " ".join(error.split())


def test_repairs_are_shown_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repair's steps have the round's numbers, and are never mixed up with them."""
    config = campaign(tmp_path, rounds=rounds({}))
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw_campaign(tmp_path, rounds=rounds({}))))
    attempt = config.folder / "rounds/00-round0/attempt-2"
    save_records(attempt / "rollouts/step-0003.parquet", records_of(SAMPLES))
    save_records(
        attempt / "distil/rollouts/step-0003.parquet", records_of(scored(said("mended", 1)))
    )
    (attempt / "interpolate-0.5").mkdir()

    def show(*arguments: str) -> tuple[str, str]:
        file = str(tmp_path / "campaign.yaml")
        monkeypatch.setattr("sys.argv", ["keel", "rollouts", "show", file, "round0", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        out, error = capsys.readouterr()
        return out, " ".join(error.split())

    own = json.loads(show("--json")[0])
    assert (own["repair"], own["repairs"], len(own["samples"])) == (None, ["distil"], 5)
    assert "--repair distil" in show()[0]
    mended = json.loads(show("--repair", "distil", "--json")[0])
    assert (mended["repair"], mended["step"]) == ("distil", 3)
    assert [sample["completion"] for sample in mended["samples"]] == ["mended"]
    assert "round0, distil, step 3: 1 samples" in show("--repair", "distil")[0]
    for label in ("interpolate-0.5", "..", "rerun"):
        assert "kept are distil" in show("--repair", label)[1]


def test_no_text_of_a_model_reaches_the_terminal_as_a_command() -> None:
    assert (
        printable("\x1b]0;title\x07\u202eabc\rx\ty\n") == "\\x1b]0;title\\x07\\u202eabc\\rx\\ty\n"
    )
    assert printable("äöü 漢字 🙂") == "äöü 漢字 🙂"
    assert printable("x" * 100, 10) == "xxxxx … xxxxx"


def test_markup_in_texts_is_only_text() -> None:
    from io import StringIO

    from rich.console import Console

    from launch.commands.rollouts import _table

    records = records_of(scored(said("[bold]hi[/bold] [/]", 1)))
    table = _table(records, None)
    console = Console(width=140, record=True, file=StringIO())
    console.print(table)
    assert "[bold]hi[/bold] [/]" in console.export_text()


def test_prompts_are_forgotten_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    """Columns of rewards and of what they log included."""
    records = records_of(SAMPLES)
    others = [{**record, "prompt_id": "p2"} for record in records]
    mixed, theirs, hers = (
        tmp_path / "attempt-1" / "rollouts" / f"step-000{step}.parquet" for step in range(3)
    )
    save_records(mixed, [*records, *others])
    save_records(theirs, others)
    save_records(hers, records)
    alone = load_records(theirs)
    assert forget_prompts(tmp_path, {"p1"}) == {mixed: len(records), hers: len(records)}
    assert load_records(mixed) == alone == load_records(theirs)
    assert not hers.exists()
    assert forget_prompts(tmp_path, set()) == {}


# episodes

CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": "<2>"}}}
ACTED = episode(
    (4, 5), (9, 9, 9), (6,),
    messages=(
        {"role": "assistant", "content": "I add.", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "3\x1b[2J"},
        {"role": "assistant", "content": "It is <b>3</b>."},
    ),
    calls=2, failed_calls=1, reward=1.0, turn_rewards=(0.5, None), state={"count": 3},
    environment="calculator",
)  # fmt: skip


def test_a_record_of_an_episode_holds_its_turns(tmp_path: Path) -> None:
    group = scored(ACTED, said("a b", 1))[0]
    row = row_of(group.group, ACTED, 0.25)
    rows = [replace(row, advantages_T=(0.75, 0.75, 0.25))]
    save_records(tmp_path / "a.parquet", records_of([group], rows))
    record, plain = load_records(tmp_path / "a.parquet")
    assert (record["tokens"], record["turns"], record["calls"], record["failed_calls"]) == (
        3,
        2,
        2,
        1,
    )
    assert plain["episode"] is None and plain["turns"] is None
    stored = json.loads(record["episode"])
    assert stored["turn_advantages"] == [0.75, 0.25]
    assert stored["messages"] == [dict(message) for message in ACTED.episode.messages]
    assert (stored["reward"], stored["state"], stored["end"]) == (1.0, {"count": 3}, "answer")
    assert ordered([record, plain], "turns")[0] == record


def test_show_prints_an_episode_turn_by_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = campaign(tmp_path, rounds=rounds({}))
    (tmp_path / "campaign.yaml").write_text(json.dumps(raw_campaign(tmp_path, rounds=rounds({}))))
    table = config.folder / "rounds/00-round0/attempt-1/rollouts/step-0000.parquet"
    save_records(table, records_of(scored(ACTED, said("a b", 1))))
    file = str(tmp_path / "campaign.yaml")
    monkeypatch.setattr("sys.argv", ["keel", "rollouts", "show", file, "round0"])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert (
        """group 0, sample 0: reward 8, 2 turns, 2 calls, 1 failed
  turn 1 (reward 0.5)
    I add.
    calls add(a=1, b="<2>")
    add returned: 3\\x1b[2J
  turn 2
    It is <b>3</b>.
  ended by answer, reward of the environment 1, environment calculator
  state {"count": 3}
"""
        in out
    )
    assert "\x1b[2J" not in out
    monkeypatch.setattr("sys.argv", ["keel", "rollouts", "show", file, "round0", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    acted, plain = json.loads(capsys.readouterr().out)["samples"]
    assert acted["episode"]["turn_rewards"] == [0.5, None] and plain["episode"] is None


def test_the_page_shows_an_episode_as_text(tmp_path: Path) -> None:
    attempt = StorePaths(tmp_path).round(0, "round0").attempt(1)
    group = replace(
        scored(ACTED)[0],
        group=replace(scored(ACTED)[0].group, prompt=Prompt(id="p", text="Why?", source="new")),
    )
    save_records(attempt.table(0), records_of([group]))
    (step,) = said_of(StorePaths(tmp_path).round(0, "round0"), Limits.of(1))
    answer = step.said[0].completion or ""
    assert "calls add(a=1" in answer and "add returned: 3\\x1b[2J" in answer
    assert "It is <b>3</b>." in answer  # The page escapes it as any other answer.
