"""The tiny world answers by hand-worked rules, repeats exactly and never leaks an eval item."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.demo import BASE_MODEL
from align.data.demo.world import (
    GENERAL,
    HELDOUT_PAIRS,
    OPS,
    SOURCES,
    TRAINED_PAIRS,
    Digits,
    Task,
    WorldExample,
    demo_prompts,
    examples,
    split_of,
    strings,
)

PI: Digits = (3, 1, 4, 1, 5)
ANY_DIGITS = st.tuples(*[st.integers(0, 9)] * 5)
ANY_SOURCE = st.sampled_from(sorted(SOURCES))


@pytest.mark.parametrize(
    ("task", "prompt", "answer"),
    [
        (Task("rev"), "rev _ 3 1 4 1 5 =", "5 1 4 1 3"),
        (Task("sort"), "sort _ 3 1 4 1 5 =", "1 1 3 4 5"),
        (Task("rotl"), "rotl _ 3 1 4 1 5 =", "1 4 1 5 3"),
        (Task("inc"), "inc _ 3 1 4 1 5 =", "4 2 5 2 6"),
        (Task("copy"), "copy _ 3 1 4 1 5 =", "3 1 4 1 5"),
        (Task("max"), "max _ 3 1 4 1 5 =", "5 5 5 5 5"),
        (Task("cmp"), "cmp _ 3 1 4 1 5 =", "6 8 5 8 4"),
        (Task("rotl", "inc"), "rotl inc 3 1 4 1 5 =", "2 5 2 6 4"),
        (Task("sort", "rotl"), "sort rotl 3 1 4 1 5 =", "1 3 4 5 1"),
    ],
)
def test_hand_worked_answers(task: Task, prompt: str, answer: str) -> None:
    example = WorldExample(task, PI)
    assert (example.prompt, example.answer) == (prompt, answer)


def test_inc_wraps_at_nine() -> None:
    assert Task("inc").answer((9, 0, 9, 8, 1)) == (0, 1, 0, 9, 2)


def test_the_first_op_of_a_pair_acts_first() -> None:
    assert Task("sort", "rev").answer(PI) == (5, 4, 3, 1, 1)
    assert Task("rev", "sort").answer(PI) == (1, 1, 3, 4, 5)


def test_six_pairs_are_trained_and_the_other_six_held_out() -> None:
    ordered = {(a, b) for a in OPS for b in OPS if a != b}
    assert len(TRAINED_PAIRS) == len(HELDOUT_PAIRS) == 6
    assert {*TRAINED_PAIRS, *HELDOUT_PAIRS} == ordered
    assert {a for a, _ in TRAINED_PAIRS} == {b for _, b in TRAINED_PAIRS} == set(OPS)


def test_the_splits_share_no_digits_and_cover_all() -> None:
    train, held = set(strings("train")), set(strings("eval"))
    assert not train & held
    assert len(train) + len(held) == 100_000
    assert 9_000 < len(held) < 11_000


def test_the_split_never_changes() -> None:
    """Frozen: a base model in someone's store was trained on one side of it."""
    assert strings("eval")[:3] == ((0, 0, 0, 0, 1), (0, 0, 0, 1, 7), (0, 0, 0, 3, 0))
    assert len(strings("eval")) == 10_047
    assert split_of(PI) == "train"


@given(source=ANY_SOURCE, n=st.integers(1, 300), seed=st.integers(0, 50))
def test_training_prompts_of_any_source_and_seed_avoid_every_eval_item(
    source: str, n: int, seed: int
) -> None:
    trained = {example.digits for example in examples(source, n, "train", seed)}
    evaluated = {example.digits for example in examples("general", n, "eval", seed)}
    assert not trained & evaluated


@given(source=ANY_SOURCE, n=st.integers(1, 200), more=st.integers(0, 50), seed=st.integers(0, 9))
def test_prompts_are_distinct_repeatable_and_only_appended_to(
    source: str, n: int, more: int, seed: int
) -> None:
    few = demo_prompts(f"demo://{source}?n={n}&seed={seed}")
    many = demo_prompts(f"demo://{source}?n={n + more}&seed={seed}")
    assert many[:n] == few
    assert len({prompt.id for prompt in many}) == len({prompt.text for prompt in many}) == n + more


@given(digits=ANY_DIGITS, op=st.sampled_from(sorted(OPS | GENERAL)))
def test_every_answer_is_five_digits(digits: Digits, op: str) -> None:
    answer = Task(op).answer(digits)
    assert len(answer) == 5
    assert all(0 <= digit <= 9 for digit in answer)


@given(digits=ANY_DIGITS)
def test_ops_undo_themselves_as_often_as_they_should(digits: Digits) -> None:
    def times(op: str, count: int) -> Digits:
        said = digits
        for _ in range(count):
            said = OPS[op](said)
        return said

    assert times("rev", 2) == times("rotl", 5) == times("inc", 10) == digits
    assert times("sort", 2) == times("sort", 1)


def test_a_whole_split_can_be_had_and_not_one_prompt_more() -> None:
    size = len(strings("eval"))
    assert {e.digits for e in examples("rev", size, "eval")} == set(strings("eval"))
    with pytest.raises(ValueError, match=f"rev has 1 to {size} prompts in its eval split"):
        examples("rev", size + 1, "eval")


def test_general_asks_its_three_skills_equally_often() -> None:
    tasks = Counter(p.columns["task"] for p in demo_prompts("demo://general?n=300&split=eval"))
    assert tasks == {"copy": 100, "max": 100, "cmp": 100}


def test_a_prompt_carries_what_rewards_need() -> None:
    prompt = demo_prompts("demo://rotl+inc?n=1&seed=3")[0]
    digits = prompt.id.removeprefix("rotl+inc/")
    example = WorldExample(Task("rotl", "inc"), tuple(map(int, digits)))
    assert prompt.text == example.prompt
    assert prompt.columns == {"answer": example.answer, "task": "rotl+inc"}


def test_defaults_are_two_thousand_training_prompts_of_seed_zero() -> None:
    assert demo_prompts("demo://sort") == demo_prompts("demo://sort?n=2000&split=train&seed=0")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("demo://revv", "unknown demo source 'revv'; known: rev, sort"),
        ("demo://rev?m=3", "unknown option 'm' .* known: n, split, seed"),
        ("demo://rev?split=test", "unknown split 'test'; known: train, eval"),
        ("demo://rev?n=ten", "n='ten' .* is not a whole number"),
        ("demo://rev?n=-1", "n='-1' .* is not a whole number"),
        ("demo://rev?n=0", "n=0: demo://rev has 1 to "),
        ("demo://rev?n=1&n=2", "given twice"),
        ("demo://rev/extra", "is not of the form"),
        ("hf://rev", "is not of the form"),
    ],
)
def test_a_wrong_uri_says_what_is_known(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo_prompts(uri)


def test_the_world_imports_no_torch() -> None:
    code = "import align.data.demo.world, sys; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_shipped_base_is_whole_small_and_as_described() -> None:
    files = {path.name: path.stat().st_size for path in BASE_MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= set(files)
    assert files["model.safetensors"] <= 2_000_000
    skills = json.loads((BASE_MODEL / "skills.json").read_text(encoding="utf-8"))["skills"]
    assert all(0.30 <= skills[op] <= 0.40 for op in OPS)
    assert all(skills[skill] >= 0.98 for skill in GENERAL)


def test_the_shipped_tokenizer_gives_every_answer_back() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE_MODEL)
    for example in examples("pairs", 12) + examples("general", 12) + examples("heldout", 12):
        assert len(tokenizer(example.prompt)["input_ids"]) == 8
        ids = tokenizer(example.answer)["input_ids"]
        assert len(ids) == 5
        ended = [*ids, tokenizer.eos_token_id]
        assert tokenizer.decode(ended, skip_special_tokens=True) == example.answer
