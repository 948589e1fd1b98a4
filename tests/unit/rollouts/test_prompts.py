"""Prompts: read from every kind of source, encoded with a real tokenizer, dealt out repeatably."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder, PromptStream, content_id, load_prompts
from rollouts.types import Prompt

WORDS = ["<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "a", "b", "c"]
IDS = {word: i for i, word in enumerate(WORDS)}

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None = None, chat: str | None = None) -> PreTrainedTokenizerFast:
    """One word is one token; ``template`` such as ``<bos> $A <eos>`` adds special ones."""
    backend = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    if template is not None:
        special = [(word, IDS[word]) for word in ("<bos>", "<eos>")]
        backend.post_processor = TemplateProcessing(single=template, special_tokens=special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    made.chat_template = chat
    return made


def load(source: Path | str, schemes: Any = None, **fields: Any) -> list[Prompt]:
    config = SimpleNamespace(
        **{"source": str(source), "column": "prompt", "split": "train", "limit": None, **fields}
    )
    return load_prompts(config, schemes or {}, "reverse", "new")


def refused(source: Path | str, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **fields)
    return str(caught.value)


ROWS = [{"prompt": "a b", "answer": "b a"}, {"prompt": "c", "answer": "c"}]


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def write_csv(path: Path) -> None:
    path.write_text("prompt,answer\na b,b a\nc,c\n")


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.jsonl", write_jsonl),
        ("p.json", write_json),
        ("p.csv", write_csv),
        ("p.parquet", write_parquet),
    ],
)
def test_every_file_type_gives_the_same_prompts(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    prompts = load(tmp_path / name)
    assert prompts == [
        Prompt(id=content_id("a b"), text="a b", columns={"answer": "b a"}, round="reverse"),
        Prompt(id=content_id("c"), text="c", columns={"answer": "c"}, round="reverse"),
    ]
    assert [p.text for p in load(tmp_path / name, column="answer")] == ["b a", "c"]
    assert [p.text for p in load(tmp_path / name, limit=1)] == ["a b"]


def test_ids_depend_on_the_content_alone(tmp_path: Path) -> None:
    assert content_id("a b") == content_id("a b") != content_id("a  b")
    one = content_id([{"role": "user", "content": "a"}])
    assert one == content_id([{"content": "a", "role": "user"}]) != content_id("a")
    # Pinned: replay buffers and ledgers hold these ids.
    assert content_id("a b") == "5e229e245c3e5252"


def test_exact_duplicates_keep_the_first_and_are_told_by_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,answer\na,1\nb,2\na,1\nb,2\n")
    with caplog.at_level(logging.WARNING):
        prompts = load(path)
    assert [(p.text, p.columns["answer"]) for p in prompts] == [("a", "1"), ("b", "2")]
    assert "2 of 4 prompts are duplicates" in caplog.text
    assert f"{path}:4 is {path}:2, {path}:5 is {path}:3" in caplog.text


def test_one_text_with_other_columns_is_another_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first keeps the id of its text: stores hold it."""
    path = tmp_path / "p.csv"
    path.write_text("prompt,answer\na,1\nb,2\na,3\na,4\na,3\n")
    with caplog.at_level(logging.WARNING):
        prompts = load(path)
    assert [(p.text, p.columns["answer"]) for p in prompts] == [
        ("a", "1"), ("b", "2"), ("a", "3"), ("a", "4"),
    ]  # fmt: skip
    assert [p.id for p in prompts[:2]] == [content_id("a"), content_id("b")]
    assert len({p.id for p in prompts}) == 4
    assert "1 of 5 prompts are duplicates" in caplog.text
    path.write_text("answer,prompt\n1,a\n3,a\n2,b\n4,a\n9,c\n")
    again = {(p.text, p.columns["answer"]): p.id for p in load(path)}
    for prompt in prompts:
        assert again[str(prompt.text), prompt.columns["answer"]] == prompt.id


def test_messages_are_read_from_json_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet fills the absent name with None, which is not part of the message.
    turns = [{"role": "system", "content": "s", "name": "x"}, {"role": "user", "content": "a"}]
    filled = [turns[0], {**turns[1], "name": None}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns}))
    pq.write_table(pa.Table.from_pylist([{"prompt": filled}]), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.parquet"):
        (prompt,) = load(tmp_path / name)
        assert prompt.messages == tuple(turns) and prompt.text is None
        assert prompt.id == content_id(turns)


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ('{"prompt": "b"', ":3", "not valid JSON"),
        ('["b"]', ":3", "holds a list, expected an object"),
        ('{"prompt": ' + "9" * 5000 + "}", ":3", "more digits than can be read"),
        ('{"promt": "b"}', ":3", "did you mean 'promt'?"),
        ('{"prompt": "  "}', ":3", "is empty"),
        ('{"prompt": 3}', ":3", "holds a int, expected text or messages"),
        ('{"prompt": null}', ":3", "holds a NoneType"),
        ('{"prompt": []}', ":3", "is empty"),
        ('{"prompt": [{"role": "user", "content": " "}]}', ":3", "is empty"),
        ('{"prompt": ["b"]}', ":3", "holds the message 'b'"),
        ('{"prompt": [{"role": "user", "content": 3}]}', ":3", "whose content is a int"),
        ('{"prompt": [{"from": "human", "value": "b"}]}', ":3", "'from' and 'value'"),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "text", "text": "b"}]}]}',
            ":3",
            "a list of parts",
        ),
        (
            '{"prompt": [{"role": "user", "content": "b"}, {"role": "assistant", "content": ""}, '
            '{"role": "user", "content": "c"}]}',
            ":3",
            "message 2 (assistant) is empty",
        ),
        ('{"prompt": [{"role": "system", "content": "b"}]}', ":3", "is the system prompt's"),
        (
            '{"prompt": [{"role": "user", "content": "b", "tool_calls": [{"name": "f"}]}]}',
            ":3",
            "tool_calls in a turn that is not the assistant's",
        ),
        (
            '{"prompt": [{"role": "assistant", "tool_calls": ["f"]}, {"role": "tool", "content": ""}]}',
            ":3",
            "no list of calls",
        ),
        ('{"prompt": "b", "tools": [{"name": "f"}]}', ":3", "no chat template"),
        (
            '{"prompt": [{"role": "user", "content": "b"}], "tools": ["f"]}',
            ":3",
            "'tools' is no list of functions",
        ),
        ('{"prompt": "b", "prompt": "c"}', ":3", "the key 'prompt' stands twice"),
        ('{"prompt": "b", "x": {"a": 1, "a": 2}}', ":3", "the key 'a' stands twice"),
        ('{"prompt": "b", "x": ' + "[" * 5000 + "]" * 5000 + "}", ":3", "nested too deeply"),
        ('{"prompt": [{"role": "user", "content": ["b"]}]}', ":3", "all values text"),
        ('{"prompt": [{"role": "user", "content": null}]}', ":3", "without role or content"),
        ('{"prompt": [{"role": "assistant", "content": "b"}]}', ":3", "is the assistant's"),
        ('{"prompt": "\\ud800"}', ":3", "not valid Unicode"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, where: str, what: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n")
    message = refused(path)
    assert message.startswith(f"{path}{where}: ") and what in message


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("p.json", '{"prompt": "a"}', "", "holds a dict, expected a list"),
        ("p.json", '[{"prompt": "a"},\n!]', ":2", "not valid JSON"),
        ("p.json", '[{"prompt": "a"}, 3]', " row 2", "holds a int"),
        ("p.csv", "prompt,n\na,1\nb,2,3\n", ":3", "does not have 2 fields"),
        ("p.csv", "prompt,n\na\n", ":2", "does not have 2 fields"),
        ("p.csv", "prompt,prompt\na,1\n", ":1", "two columns are named 'prompt'"),
        ("p.csv", 'prompt\n"a\n', ":2", "not valid CSV"),
        ("p.csv", "prompt,n\n,1\n", ":2", "is empty"),
        ("p.json", "[" + "9" * 5000 + "]", "", "more digits than can be read"),
        ("p.parquet", "prompt", "", "not a parquet file"),
        ("p.txt", "a", "", "cannot read .txt file"),
    ],
)
def test_bad_files_say_where(
    tmp_path: Path, name: str, content: str, where: str, what: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    message = refused(path)
    assert message.startswith(f"{path}{where}: ") and what in message


def test_a_damaged_parquet_file_is_told_as_one(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [f"a{number}" for number in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(byte ^ 0x5A for byte in content[40:400])
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: not a parquet file, or a damaged one")
    assert "paths are relative" not in message


@pytest.mark.parametrize(
    ("name", "content"), [("p.jsonl", "\n"), ("p.json", "[]"), ("p.csv", "prompt\n")]
)
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert "holds no prompts" in refused(tmp_path / name)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere.jsonl")
    (tmp_path / "p.csv").write_bytes(b"prompt\n\xff\n")
    assert "not UTF-8" in refused(tmp_path / "p.csv")


def test_a_byte_order_mark_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfprompt,n\r\n"a\r\nb",1\r\n')
    (prompt,) = load(tmp_path / "p.csv")
    assert (prompt.text, prompt.columns) == ("a\r\nb", {"n": "1"})


def test_schemes_keep_their_ids_and_explain_themselves() -> None:
    def demo(uri: str) -> list[Prompt]:
        if uri != "demo://rev":
            raise ValueError("unknown demo source; known: rev")
        return [Prompt(id="rev/1", text="1"), Prompt(id="rev/2", text="2")]

    prompts = load("demo://rev", {"demo": demo}, limit=1)
    assert prompts == [Prompt(id="rev/1", text="1", round="reverse")]
    with pytest.raises(UserError, match="known: rev"):
        load("demo://sort", {"demo": demo})
    with pytest.raises(UserError, match="unknown kind of source dmo") as caught:
        load("dmo://rev", {"demo": demo})
    assert "did you mean 'demo'?" in str(caught.value)


def test_a_dataset_folder_is_read_and_a_missing_one_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl")
    assert [p.text for p in load(folder)] == ["a b", "c"]
    message = refused(folder, split="test")
    assert "split 'test'" in message
    assert "cannot load the dataset" in refused("keel/nowhere-at-all")


def test_text_is_encoded_with_bos_and_without_an_appended_eos() -> None:
    prompt = Prompt(id="p", text="a b")
    for template, ids in [
        (None, (5, 6)),
        ("<bos> $A", (0, 5, 6)),
        ("<bos> $A <eos>", (0, 5, 6)),
        ("$A <eos>", (5, 6)),
    ]:
        assert PromptEncoder(tokenizer(template)).encode(prompt) == ids
    # An end-of-sequence token the text itself ends with is the text's.
    ends = Prompt(id="p", text="a <eos>")
    assert PromptEncoder(tokenizer("$A <eos>")).encode(ends) == (5, 1)
    # Some models begin with the token they end with; it stays in front.
    same = Prompt(id="p", text="<eos>")
    assert PromptEncoder(tokenizer("<eos> $A")).encode(same) == (1, 1)


def test_messages_go_through_the_chat_template() -> None:
    chat = PromptEncoder(tokenizer("<bos> $A <eos>", CHAT_TEMPLATE))
    prompt = Prompt(id="p", messages=({"role": "user", "content": "a b"},))
    assert chat.encode(prompt) == (3, 5, 6, 4)
    with pytest.raises(UserError, match="has no chat template"):
        PromptEncoder(tokenizer()).encode(prompt)
    system = Prompt(id="p", messages=({"role": "system", "content": "a"},))
    with pytest.raises(UserError, match="refuses prompt 'p'") as caught:
        chat.encode(system)
    assert caught.value.cause == "no system role"


def test_many_prompts_are_encoded_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts and messages in any order, more than are tokenized at once."""
    monkeypatch.setattr("rollouts.prompts.PROMPTS_AT_ONCE", 3)
    chat = PromptEncoder(tokenizer("<bos> $A <eos>", CHAT_TEMPLATE))
    texts = [Prompt(id=text, text=text) for text in ("a b", "b", "<bos> a", "a <eos>", "b a b")]
    turns = Prompt(id="t", messages=({"role": "user", "content": "a b"},))
    prompts = [texts[0], turns, *texts[1:], turns]
    assert list(chat.encode_all(prompts)) == [chat.encode(prompt) for prompt in prompts]
    assert list(chat.encode_all([texts[0]])) == [(0, 5, 6)]
    assert list(chat.encode_all([])) == []
    with pytest.raises(UserError, match="has no tokens"):
        list(PromptEncoder(tokenizer()).encode_all([Prompt(id="p", text=" ")]))


def test_decode_leaves_special_tokens_out_and_eos_ids_are_known() -> None:
    encoder = PromptEncoder(tokenizer(), extra_eos_ids=[7, 1])
    assert encoder.decode((5, 6, 1)) == "a b"
    assert encoder.eos_ids == (1, 7)
    with pytest.raises(UserError, match="has no tokens"):
        encoder.encode(Prompt(id="p", text=" "))


def prompts_of(n: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=str(i)) for i in range(n)]


@given(n=st.integers(1, 12), seed=st.integers(0, 2**32), epochs=st.integers(1, 4))
def test_every_epoch_is_a_permutation(n: int, seed: int, epochs: int) -> None:
    stream = PromptStream(prompts_of(n), seed)
    for _ in range(epochs):
        assert Counter(p.id for p in stream.take(n)) == Counter(p.id for p in prompts_of(n))
    assert stream.cursor == n * epochs


@given(n=st.integers(1, 8), seed=st.integers(0, 99), draws=st.lists(st.integers(0, 20), max_size=6))
def test_seek_equals_having_taken(n: int, seed: int, draws: list[int]) -> None:
    walked = PromptStream(prompts_of(n), seed)
    for draw in draws:
        walked.take(draw)
    jumped = PromptStream(prompts_of(n)[::-1], seed)
    jumped.seek(sum(draws))
    assert jumped.cursor == walked.cursor
    assert jumped.take(10) == walked.take(10)


def test_seeds_and_epochs_differ_and_the_order_is_pinned() -> None:
    order = [p.id for p in PromptStream(prompts_of(6), 0).take(12)]
    assert order[:6] != order[6:]
    assert order != [p.id for p in PromptStream(prompts_of(6), 1).take(12)]
    assert order[:6] == ["p5", "p4", "p2", "p1", "p3", "p0"]  # by sha256 of "0/0/p<i>"
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptStream([], 0)
    with pytest.raises(ValueError, match="negative"):
        PromptStream(prompts_of(1), 0).seek(-1)
