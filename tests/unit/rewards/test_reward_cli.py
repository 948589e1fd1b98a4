"""``keel reward``: list, show, new and test, without anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from launch.commands.reward import bars
from rewards.trial.data import groups_of, read_prompts, read_samples
from rewards.trial.trial import TrialSpec, distribution, try_reward
from rollouts.errors import UserError

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "vllm", "transformers", "trl", "peft", "datasets"}
Keel = Callable[..., tuple[int, str, str]]

ROWS = [
    {"prompt": "2+2=", "completion": "4", "answer": "4"},
    {"prompt": "3+3=", "completion": "6", "answer": "6"},
    {"prompt": "2+2=", "completion": "5", "answer": "4"},
    {"prompt": "3+3=", "completion": "6", "answer": "6"},
]

MOODY = '''
def moody(completions, **columns):
    """Likes what is short."""
    if "sulk" in completions:
        raise RuntimeError("not today")
    return [None if c == "?" else 1.0 / (1 + len(c)) for c in completions]
'''


@pytest.fixture
def keel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Keel:
    """Run the entry point in a folder of its own; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["keel", "reward", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, error = capsys.readouterr()
        return int(caught.value.code or 0), out, error

    return call


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "answers.jsonl", ROWS)


# list, show, new


def test_list_names_what_ships(keel: Keel) -> None:
    code, out, _ = keel("list")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("exact_match "))
    assert line.split()[1] == "keel"
    assert "answer" in line


def test_list_says_what_is_broken(keel: Keel, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.signatures.info import RewardInfo

    broken = RewardInfo(name="odd", origin="odd 1.0", problem="cannot import odd\n  cause: none")
    monkeypatch.setattr("rewards.registry.known_rewards", lambda: [broken])
    assert keel("list")[1] == "odd  odd 1.0  BROKEN: cannot import odd\n"
    assert json.loads(keel("list", "--json")[1])[0]["problem"].startswith("cannot import odd")


def test_show_names_options_columns_and_isolation(keel: Keel) -> None:
    code, out, _ = keel("show", "regex_match")
    assert code == 0
    assert "pattern: " in out and "full: bool = " in out
    assert "reward regex_match: process" in out
    assert "columns it needs: answer\nvalues: 0 to 1\n" in keel("show", "exact_match")[1]
    assert "asks a model" in keel("show", "llm_judge")[1]
    found = json.loads(keel("show", "exact_match", "--json")[1])
    assert (found["reward"]["columns"], found["isolation"]["level"]) == (["answer"], "inline")


def test_new_writes_a_reward_whose_test_passes(keel: Keel, tmp_path: Path) -> None:
    code, out, _ = keel("new", "kind_words")
    assert code == 0
    assert "kind_words.py:kind_words" in out
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_kind_words.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout


@pytest.mark.parametrize("taken", ["mine.py", "test_mine.py"])
def test_new_overwrites_nothing(keel: Keel, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    code, _, error = keel("new", "mine")
    assert code == 2
    assert taken in error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(taken, "precious")]


@pytest.mark.parametrize("name", ["two words", "class", "json", "../up", ""])
def test_new_refuses_names_of_no_module(keel: Keel, tmp_path: Path, name: str) -> None:
    assert keel("new", name)[0] == 2
    assert list(tmp_path.iterdir()) == []


# test


def test_what_a_trial_prints(keel: Keel, data: str) -> None:
    code, out, _ = keel("test", "exact_match", "--data", data)
    assert code == 0
    assert "4: 4 scored, 0 abstained, 0 failed" in out
    assert "min 0  p10 0.3  median 1  p90 1  max 1" in out
    assert "2, 50% with equal scores" in out
    assert "fooled by 0" in out
    assert "reward exact_match: inline" in out


def test_failures_abstentions_and_their_trace(keel: Keel, tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    answers = ["aaa", "?", "sulk", "b", "ccccc"]
    file = write(tmp_path / "a.jsonl", [{"prompt": f"p{a}", "completion": a} for a in answers])
    arguments = ("test", "moody.py:moody", "--data", file, "--isolation", "inline")
    out = keel(*arguments)[1]
    assert "5: 3 scored, 1 abstained, 1 failed" in out
    assert "1 raised; the first:" in out
    assert 'raise RuntimeError("not today")' in out
    assert "none with two scores" in out
    assert "empty: on 5 of 5 prompts, up to 1" in out
    found = json.loads(keel(*arguments, "--json")[1])
    assert [(f["kind"], f["count"]) for f in found["failures"]] == [("raised", 1)]
    assert found["distribution"]["max"] == 0.5


def test_a_plain_function_needs_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    file = write(tmp_path / "a.jsonl", ROWS)
    code = f"""
import sys
sys.argv = ["keel", "reward", "test", "moody.py:moody", "--data", {file!r}, "--isolation", "inline"]
from launch.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *{{name.partition(".")[0] for name in sys.modules}})
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_options_reach_the_reward(keel: Keel, data: str) -> None:
    arguments = ("test", "regex_match", "--data", data, "--isolation", "inline", "--json")
    found = json.loads(keel(*arguments, "--option", "pattern=^[45]$")[1])
    assert found["distribution"]["histogram"] == [2, *[0] * 18, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exact_mach"], "did you mean 'exact_match'?"),
        (["exact_match", "--option", "loud"], "option 'loud' has no value"),
        (["exact_match", "--option", "loud=1"], "does not take the option 'loud'"),
        (["code_tests"], "needs the column"),
        (["exact_match", "--group-size", "1"], "invalid value"),
        (["exact_match", "--isolation", "none"], "invalid value"),
        (["exact_match", "--completions", "nowhere.jsonl"], "cannot open the file"),
        (["exact_match", "--completions", "a", "--policy", "b"], "either given or sampled"),
        (["exact_match", "--policy", "./nowhere"], "no folder './nowhere'"),
        (["exact_mach", "--policy", "./nowhere"], "did you mean 'exact_match'?"),
        (["code_tests", "--policy", "./nowhere"], "needs the column"),
        (["exact_match", "--policy", "demo://digits", "--max-tokens", "500"], "the longest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_exits_2(keel: Keel, data: str, arguments: list[str], said: str) -> None:
    if "code_tests" in arguments:
        arguments = [*arguments, "--isolation", "inline"]
    code, out, error = keel("test", *arguments, "--data", data)
    assert (code, out) == (2, "")
    assert said in " ".join(error.split())
    assert "Traceback" not in error


# the data


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"completion": "4"}, "no column 'prompt'"),
        ({"prompt": 4, "completion": "4"}, "neither text nor messages"),
        ({"prompt": "2+2="}, "no answer"),
        ({"prompt": "2+2=", "completion": "4", "completions": ["4"]}, "give either"),
        ({"prompt": "2+2=", "completion": 4}, "neither text nor messages"),
        ({"prompt": "2+2=", "completions": "4"}, "is not a list"),
        ({"prompt": "2+2=", "completion": "4", "completion_ids": "4"}, "no list of integers"),
        ({"prompt": "\ud800", "completion": "4"}, "not valid Unicode"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "a.jsonl", [ROWS[0], row])
    with pytest.raises(UserError, match=said) as caught:
        read_samples(file)
    assert str(caught.value.where).endswith("a.jsonl:2")


def test_chat_and_several_answers_of_one_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    answers = ["Hello.", [{"role": "assistant", "content": "What?"}]]
    file = write(tmp_path / "a.jsonl", [{"prompt": turns, "completions": answers, "mood": "good"}])
    samples = read_samples(file)
    assert [s.completion.text for s in samples] == ["Hello.", "What?"]
    assert {s.prompt.columns["mood"] for s in samples} == {"good"}
    assert samples[0].prompt.messages == tuple(turns)


def test_answers_of_another_file_by_row_or_by_prompt(tmp_path: Path) -> None:
    asked = write(tmp_path / "a.jsonl", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}])
    by_row = write(tmp_path / "row.jsonl", [{"completion": "x"}, {"completion": "y"}])
    joined = [{"prompt": p, "completion": c} for p, c in (("b", "y"), ("a", "x"), ("b", "z"))]
    by_prompt = write(tmp_path / "prompt.jsonl", joined)

    def read(file: str) -> list[tuple[Any, str]]:
        return [(s.prompt.columns["n"], s.completion.text) for s in read_samples(asked, file)]

    assert read(by_row) == [(1, "x"), (2, "y")]
    assert read(by_prompt) == [(1, "x"), (2, "y"), (2, "z")]
    with pytest.raises(UserError, match="holds 1 rows"):
        read(write(tmp_path / "short.jsonl", [{"completion": "x"}]))


def test_prompts_to_sample_for_are_distinct_and_need_no_answer(tmp_path: Path) -> None:
    rows = [
        {"prompt": "b", "n": 1}, {"prompt": "a"}, {"prompt": "b", "n": 1, "completion": "x"},
        {"prompt": "b", "n": 2},
    ]  # fmt: skip
    prompts = read_prompts(write(tmp_path / "a.jsonl", rows))
    assert [(p.text, dict(p.columns)) for p in prompts] == [
        ("b", {"n": 1}), ("a", {}), ("b", {"n": 2}),
    ]  # fmt: skip
    assert len({p.id for p in prompts}) == 3
    assert [p.text for p in read_prompts(write(tmp_path / "a.jsonl", rows), limit=1)] == ["b"]


def test_groups_hold_one_prompt_and_no_more_than_their_size(tmp_path: Path) -> None:
    rows = [{"prompt": p, "completion": str(n)} for n, p in enumerate("aabab")]
    samples = read_samples(write(tmp_path / "a.jsonl", rows))

    def texts(size: int | None) -> list[str]:
        return ["".join(s.completion.text for s in group) for group in groups_of(samples, size)]

    assert texts(None) == ["013", "24"]
    assert texts(2) == ["01", "3", "24"]


def test_only_full_groups_count_for_their_variance(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "4", "answer": "4"}] * 3
    samples = read_samples(write(tmp_path / "a.jsonl", rows))
    trial = try_reward(TrialSpec(name="exact_match"), samples, group_size=2)
    assert (trial.groups, trial.zero_variance, trial.samples) == (1, 1, 3)


# numbers


def test_a_distribution_by_hand() -> None:
    found = distribution([float(n) for n in range(11)])
    assert found is not None
    assert (found.min, found.p10, found.median, found.p90, found.max) == (0, 1, 5, 9, 10)
    assert sum(found.histogram) == 11
    assert distribution([]) is None
    one = distribution([2.0])
    assert one is not None and (one.p10, one.histogram) == (2.0, (1,))


def test_bars_leave_only_zero_blank() -> None:
    assert bars((0, 1, 500, 1000)) == " ▁▄█"
