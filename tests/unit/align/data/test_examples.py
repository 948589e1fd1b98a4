"""Examples: every format, what is cut and dropped, and an order that a restart repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from align.data.examples import (
    Examples,
    ExamplesConfig,
    ExampleStream,
    Unit,
    load_examples,
    rows_of,
)
from align.data.examples.forms import common_prompt
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Prompt
from tests.unit.tiny import row

LETTERS = "abcdefgh .:"
IDS = {token: i for i, token in enumerate(["^", "$", "?", *LETTERS, "U", "A"])}
"""One character is one token; ^ begins, $ ends, U and A are the speakers of a chat."""
CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ 'U' if m.role == 'user' else 'A' }}{{ m.content }}{{ '$ ' if m.role == 'assistant' }}"
    "{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)


def encoder(*, chat: str | None = None, bos: bool = False, eos: bool = True) -> PromptEncoder:
    backend = Tokenizer(WordLevel(IDS, unk_token="?"))
    backend.pre_tokenizer = Split("", "isolated")
    if bos:
        backend.post_processor = TemplateProcessing(single="^ $A", special_tokens=[("^", IDS["^"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="?", **({"eos_token": "$"} if eos else {})
    )
    tokenizer.chat_template = chat
    return PromptEncoder(tokenizer)


def load(
    tmp_path: Path, records: Any, material: Any = "pairs", context: int = 40,
    using: PromptEncoder | None = None, **fields: Any,
) -> Examples:  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps(record) for record in records))
    config = ExamplesConfig(source=str(source), **fields)
    return load_examples(config, material, using or encoder(), context, "taste")


def written(unit: Unit) -> list[tuple[str, str, float | None]]:
    """Prompt, answer and advantage of every row, as text."""
    letters = {i: token for token, i in IDS.items()}

    def text(ids: tuple[int, ...]) -> str:
        return "".join(letters[i] for i in ids)

    return [(text(r.prompt_ids), text(r.completion_ids), r.advantage) for r in unit.rows]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


GOOD = {"prompt": "a:", "chosen": " b", "rejected": " c"}


def test_a_pair(tmp_path: Path) -> None:
    found = load(tmp_path, [GOOD | {"topic": "x"}])
    (unit,) = found.units
    assert written(unit) == [("a:", " b$", 1.0), ("a:", " c$", -1.0)]
    assert {(r.source, r.round, r.policy, r.sampler_logprobs_T) for r in unit.rows} == {
        ("new", "taste", "data", ())
    }
    assert unit.prompt is not None
    assert (unit.prompt.text, unit.prompt.round) == ("a:", "taste")
    assert unit.prompt.columns["topic"] == "x"
    assert str(found.report) == "1 row gave 1 pair"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("a b: c d.", "a b: c.", "a b:"),
        ("a: bc", "a: bd", "a:"),
        ("a bc", "a b", "a"),
        ("ab c", "abd c", ""),
        ("a b", "a b c", "a"),
    ],
)
def test_an_implicit_prompt_ends_before_a_space(chosen: str, rejected: str, prompt: str) -> None:
    assert common_prompt(chosen, rejected) == prompt


def test_an_implicit_prompt_is_read(tmp_path: Path) -> None:
    (unit,) = load(tmp_path, [{"chosen": "a b: c", "rejected": "a b: d"}]).units
    assert written(unit) == [("a b:", " c$", 1.0), ("a b:", " d$", -1.0)]


def test_a_template_makes_the_prompt(tmp_path: Path) -> None:
    records = [{"instruction": "a", "input": "b", "prompt": "x", "good": "c", "bad": "d"}]
    (unit,) = load(
        tmp_path, records, template="{instruction}.{input}:", chosen="good", rejected="bad"
    ).units
    assert written(unit) == [("a.b:", "c$", 1.0), ("a.b:", "d$", -1.0)]


@pytest.mark.parametrize(
    "template", ["no column", "{}", "{a.b}", "{a[0]}", "{a:d}", "{a!z}", "{a:{b}}", "{0}"]
)
def test_a_template_names_columns_and_nothing_else(template: str) -> None:
    with pytest.raises(ValueError, match="must name columns"):
        ExamplesConfig(source="x", template=template)


def test_conversational_pairs_go_through_the_chat_template(tmp_path: Path) -> None:
    """Text that the template writes behind the end is not learnt, since nobody ever samples it."""
    asked, chosen, rejected = said("user", "a"), said("assistant", "b"), said("assistant", "c")
    records = [
        {"prompt": [asked], "chosen": [chosen], "rejected": [rejected]},
        {"chosen": [asked, chosen], "rejected": [asked, rejected]},
        {"prompt": "a", "chosen": [asked, chosen], "rejected": [asked, rejected]},
        {"prompt": [asked], "chosen": "b", "rejected": "c"},
    ]
    found = load(tmp_path, records, using=encoder(chat=CHAT))
    for unit in found.units:
        assert written(unit) == [("UaA", "b$", 1.0), ("UaA", "c$", -1.0)]
    assert found.units[0].prompt is not None
    assert found.units[0].prompt.messages == (asked,)
    assert len(found.units) == 4


def test_an_answer_starts_where_the_template_leaves_the_prompt(tmp_path: Path) -> None:
    """This one ends a waiting prompt with an empty thought, '.', that no answered one has."""
    thinking = CHAT.replace("%}A{%", "%}A.{%")
    records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
    (unit,) = load(tmp_path, records, "demonstrations", using=encoder(chat=thinking)).units
    assert written(unit) == [("UaA.", "b$", 1.0)]


def test_a_template_that_rewrites_an_answered_prompt_is_refused(tmp_path: Path) -> None:
    rewriting = "{{ 'b' if add_generation_prompt else 'c' }}" + CHAT
    records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
    with pytest.raises(UserError, match="changes the prompt"):
        load(tmp_path, records, "demonstrations", using=encoder(chat=rewriting))


def test_messages_without_a_chat_template(tmp_path: Path) -> None:
    records = [{"messages": [said("user", "a"), said("assistant", "b")]}]
    with pytest.raises(UserError, match="no chat template"):
        load(tmp_path, records, "demonstrations", max_dropped=1.0)


@pytest.mark.parametrize(
    ("label", "advantage"), [(True, 1.0), (False, -1.0), ("true", 1.0), (0, -1.0)]
)
def test_a_rating(tmp_path: Path, label: Any, advantage: float) -> None:
    records = [{"prompt": "a:", "completion": "b", "label": label}]
    (unit,) = load(tmp_path, records, "ratings").units
    assert written(unit) == [("a:", "b$", advantage)]


def test_the_sides_of_a_pair_are_ratings(tmp_path: Path) -> None:
    units = load(tmp_path, [GOOD], "ratings").units
    assert [written(unit) for unit in units] == [[("a:", " b$", 1.0)], [("a:", " c$", -1.0)]]
    assert len({unit.id for unit in units}) == 2


def test_demonstrations(tmp_path: Path) -> None:
    records = [
        {"prompt": "a:", "completion": "b"},
        {"messages": [said("user", "a"), said("assistant", "b"), said("user", "c"),
                      said("assistant", "d")]},
    ]  # fmt: skip
    units = load(tmp_path, records, "demonstrations", using=encoder(chat=CHAT)).units
    assert [written(unit) for unit in units] == [
        [("a:", "b$", 1.0)],
        [("UaAb$ UcA", "d$", 1.0)],
    ]


def test_texts_are_packed_and_every_token_is_predicted_once(tmp_path: Path) -> None:
    records = [{"text": "abc"}, {"text": "de"}, {"text": "f"}]
    found = load(tmp_path, records, "texts", context=4)
    assert [written(unit)[0][:2] for unit in found.units] == [
        ("a", "bc$"),
        ("$", "de$"),
        ("$", "f$"),
    ]
    assert all(unit.prompt is None for unit in found.units)
    assert str(found.report) == "3 rows gave 3 windows"


def test_a_prompt_keeps_its_beginning_token_and_answers_get_none(tmp_path: Path) -> None:
    (unit,) = load(tmp_path, [GOOD], using=encoder(bos=True)).units
    assert written(unit) == [("^a:", " b$", 1.0), ("^a:", " c$", -1.0)]


def test_an_answer_without_an_end_of_sequence_and_one_that_has_it(tmp_path: Path) -> None:
    (bare,) = load(tmp_path, [GOOD], using=encoder(eos=False)).units
    assert [answer for _, answer, _ in written(bare)] == [" b", " c"]
    (ended,) = load(tmp_path, [GOOD | {"chosen": " b$"}]).units
    assert [answer for _, answer, _ in written(ended)] == [" b$", " c$"]


def test_tokens_that_merge_across_the_seam_leave_the_prompt_alone(tmp_path: Path) -> None:
    """`ab` is one token here: the prompt `a` is still read as engines read it."""
    backend = Tokenizer(WordLevel(IDS | {"ab": 99}, unk_token="?"))
    merging = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", eos_token="$")
    records = [{"prompt": "a", "completion": "b"}]
    (unit,) = load(tmp_path, records, "demonstrations", using=PromptEncoder(merging)).units
    assert written(unit) == [("a", "b$", 1.0)]


BAD: list[tuple[Any, str]] = [
    ({"prompt": "", "chosen": "b", "rejected": "c"}, "'prompt' is empty"),
    ({"prompt": "a", "chosen": " ", "rejected": "c"}, "'chosen' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "'rejected' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": None}, "'rejected' is empty"),
    ({"chosen": "a b", "rejected": "a "}, "'rejected' is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal sides"),
    ({"prompt": "a", "chosen": 7, "rejected": "c"}, "'chosen' is not text"),
    ({"prompt": "a", "chosen": "b"}, "no column 'rejected'"),
    ({"chosen": "b", "rejected": "c"}, "no prompt"),
    ({"prompt": None, "chosen": "b", "rejected": "c"}, "no prompt"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"}, "'margin' is not a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": [1]}, "'margin' is not a number"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "nan"}, "'margin' is not a number"),
    ({"prompt": "a", "chosen": [said("assistant", "b")], "rejected": "c"}, "one side is text"),
    ({"prompt": [said("assistant", "a")], "chosen": "b", "rejected": "c"}, "ends with an answer"),
    ({"prompt": [said("system", "a")], "chosen": "b", "rejected": "c"}, "chat template"),
    ({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "without role or content"),
    ({"prompt": "a\ud800", "chosen": "b", "rejected": "c"}, "Unicode"),
]


@pytest.mark.parametrize(
    ("column", "value", "margin"),
    [("margin", 1.5, 1.5), ("margin", "2", 2.0), ("margin", None, 0.0), ("gap", 0.5, 0.5)],
)
def test_the_margin_of_a_pair_is_its_chosen_answers(
    tmp_path: Path, column: str, value: Any, margin: float
) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", column: value}
    (unit,) = load(tmp_path, [record], margin=column).units
    assert [row.margin for row in unit.rows] == [margin, 0.0]
    (plain,) = load(tmp_path, [GOOD]).units
    assert [row.margin for row in plain.rows] == [0.0, 0.0]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_row_is_dropped_and_counted(tmp_path: Path, record: Any, reason: str) -> None:
    found = load(tmp_path, [GOOD] * 9 + [record], using=encoder(chat=CHAT))
    assert len(found.units) == 9
    (said_reason,) = found.report.dropped
    assert reason in said_reason
    assert found.report.dropped[said_reason] == ("rows.jsonl:10",)


@pytest.mark.parametrize(
    ("record", "material", "reason"),
    [
        ({"prompt": "a", "completion": "b", "label": "maybe"}, "ratings", "not true or false"),
        ({"prompt": "a", "completion": "b"}, "ratings", "no column 'label'"),
        ({"prompt": "a"}, "demonstrations", "no column 'completion'"),
        ({"messages": [said("user", "a")]}, "demonstrations", "not the assistant's"),
        ({"messages": [said("assistant", "a")]}, "demonstrations", "no prompt"),
        ({"text": ["a"]}, "texts", "'text' is not text"),
    ],
)
def test_bad_rows_of_other_material(
    tmp_path: Path, record: Any, material: Any, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        load(tmp_path, [record], material, max_dropped=1.0)


def test_too_many_bad_rows_are_one_message(tmp_path: Path) -> None:
    records = [GOOD] * 6 + [GOOD | {"chosen": "b" * 40}] * 4 + [GOOD | {"rejected": " b"}]
    with pytest.raises(UserError) as caught:
        load(tmp_path, records)
    message = str(caught.value)
    assert "5 of 11 rows cannot be used, 45.5%; max_dropped allows 10.0%" in message
    longest = [f"rows.jsonl:{number}: 43 tokens" for number in (7, 8, 9)]
    assert f"4 over-long for 40 tokens ({'; '.join(longest)}; ...)" in message
    assert "1 equal sides (rows.jsonl:11)" in message
    assert "cut: true" in message
    assert len(load(tmp_path, records, max_dropped=0.5).units) == 6


def test_cutting_instead_of_dropping(tmp_path: Path) -> None:
    """Ten tokens: the prompt's two, and eight of the answer, which then has no end."""
    records = [GOOD | {"chosen": "bcdefghabcd"}, GOOD | {"prompt": "a" * 10}] + [GOOD] * 9
    found = load(tmp_path, records, context=10, cut=True)
    assert written(found.units[0]) == [("a:", "bcdefgha", 1.0), ("a:", " c$", -1.0)]
    assert str(found.report) == (
        "11 rows gave 10 pairs; 1 answer cut to the context; "
        "8 rows repeat others (rows.jsonl:4 is rows.jsonl:3; rows.jsonl:5 is rows.jsonl:3; "
        "rows.jsonl:6 is rows.jsonl:3; ...); "
        "1 row left out: 1 over-long for 10 tokens (rows.jsonl:2: 13 tokens)"
    )


def test_sides_that_are_equal_once_cut_are_dropped(tmp_path: Path) -> None:
    record = {"prompt": "a", "chosen": "bbbbbc", "rejected": "bbbbbd"}
    with pytest.raises(UserError, match="equal sides"):
        load(tmp_path, [record], context=5, cut=True)


def test_an_empty_source_and_a_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no examples"):
        load(tmp_path, [])
    assert load(tmp_path, [GOOD] * 3, limit=2).report.num_rows == 2


def test_a_json_list_is_read(tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([GOOD, GOOD | {"rejected": " d"}]))
    config = ExamplesConfig(source=str(source))
    assert len(load_examples(config, "pairs", encoder(), 40, "taste").units) == 2


def test_no_prompt_names_the_columns_there_are(tmp_path: Path) -> None:
    record = {"question": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(
        UserError, match="no prompt: no column 'prompt' among 'question', 'chosen', "
    ):
        load(tmp_path, [record])
    with pytest.raises(UserError, match="no column 'good' among 'question', 'chosen', 'rejected'"):
        load(tmp_path, [record], chosen="good")
    with pytest.raises(UserError, match="no column 'topic' among 'question', 'chosen', 'rejected'"):
        load(tmp_path, [record], template="{question} {topic}")


def test_the_remedy_is_one_that_is_not_taken_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, [{"prompt": "a" * 60, "chosen": "b", "rejected": "c"}], cut=True)
    assert "cut: true" not in str(caught.value)
    assert "shorten the prompts that leave no room" in str(caught.value)


def test_a_unit_and_its_prompt_know_their_line(tmp_path: Path) -> None:
    units = load(tmp_path, [GOOD, GOOD | {"prompt": "b:"}]).units
    assert [unit.location.rpartition("/")[2] for unit in units] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert [unit.prompt and unit.prompt.location for unit in units] == [
        unit.location for unit in units
    ]


def test_windows_know_the_documents_they_are_cut_from(tmp_path: Path) -> None:
    """Ends included the documents have 4, 2 and 8 tokens, and windows of 5 begin at 0, 4, 8 and 12."""
    records = [{"text": "abc"}, {"text": "d"}, {"text": "efghabc"}]
    found = load(tmp_path, records, "texts", context=5)
    names = [document.name for document in found.documents]
    shown = [[names.index(name) for name in unit.documents] for unit in found.units]
    assert shown == [[0, 1], [1, 2], [2], [2]]
    assert [unit.location.rpartition(":")[2] for unit in found.units] == ["1", "2", "3", "3"]


def test_ids_follow_the_content(tmp_path: Path) -> None:
    first = load(tmp_path, [GOOD, GOOD | {"topic": "x"}, GOOD | {"rejected": " d"}]).units
    assert first[0].id == first[1].id != first[2].id
    assert [unit.id for unit in load(tmp_path, [GOOD]).units] == [first[0].id]


UNITS = tuple(
    Unit(id=f"{i:02}", prompt=None, rows=(row(advantage=1.0), row(advantage=-1.0)))
    for i in range(7)
)


@given(st.integers(0, 40), st.integers(0, 20), st.permutations(UNITS))
def test_what_is_dealt_depends_on_the_position_alone(
    first: int, count: int, units: list[Unit]
) -> None:
    whole = ExampleStream(UNITS, seed=3).at(0, 60)
    stream = ExampleStream(units, seed=3)
    stream.at(11, 1)
    assert stream.at(first, count) == whole[first : first + count]


def test_every_epoch_is_another_permutation() -> None:
    stream = ExampleStream(UNITS, seed=0)
    epochs = [[unit.id for unit in stream.at(epoch * 7, 7)] for epoch in range(5)]
    assert all(sorted(epoch) == [unit.id for unit in UNITS] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[0] != [unit.id for unit in ExampleStream(UNITS, seed=1).at(0, 7)]
    with pytest.raises(ValueError, match="negative"):
        stream.at(-1, 1)
    with pytest.raises(ValueError, match="at least one"):
        ExampleStream([], seed=0)


def test_rows_of_a_pair_share_a_number_and_single_rows_have_none() -> None:
    single = Unit(id="s", prompt=None, rows=(row(),))
    rows = rows_of([UNITS[0], single, UNITS[0]])
    assert [r.unit for r in rows] == [-1, -1, None, -3, -3]


def test_texts_that_are_not_packed_keep_windows_of_their_own() -> None:
    from align.data.examples.encode import Document, windows

    texts = [Document(text=t, location=f"t:{i}", name=t) for i, t in enumerate(["a b", "c d"])]
    coder = encoder()
    joined = list(windows(texts, coder, context=50, round="r"))
    apart = list(windows(texts, coder, context=50, round="r", pack=False))
    assert len(joined) == 1
    assert len(apart) == 2
    (row,) = apart[1].rows
    assert (*row.prompt_ids, *row.completion_ids)[:2] == coder.encode(Prompt(id="", text="c d"))[:2]
