"""Index of documents: its versions, the search in it, and documents before prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, tensor

from align.algorithms.rows import Row
from align.bank.encoder import EncoderIdentity
from align.config.retrieval.settings import IndexConfig, RetrievalConfig
from align.data.demo.tokenizer import build_tokenizer
from align.data.examples.stream import Unit
from align.data.retrieval.before import turns_with
from align.data.retrieval.documents import IndexChange, check_forgotten, load_change
from align.data.retrieval.encoder import RetrievingEncoder
from align.data.retrieval.index import DOCUMENTS, FOLDER, INDEX, VECTORS, DocumentIndex, read_index
from align.data.retrieval.search import BM25Search
from align.errors import SnapshotError
from align.learner.bank import texts as texts_module
from rollouts.errors import UserError
from rollouts.prompts import PromptEncoder
from rollouts.types import Message, Prompt


def index(texts: dict[str, str], **settings: Any) -> DocumentIndex:
    """A first version with these texts by key."""
    empty = DocumentIndex(settings=RetrievalConfig(**settings))
    return empty.changed(IndexChange(texts=texts), "first")[0]


def rows(path: Path, *values: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


# versions


def test_a_change_forgets_overwrites_and_adds_in_this_order() -> None:
    before = index({"a": "one", "b": "two", "c": "three"})
    change = IndexChange(texts={"b": "zwei", "c": "three", "d": "vier"}, forgotten=("a", "x"))
    after, counts = before.changed(change, "second")
    assert [(d.key, d.text, d.round) for d in after.documents] == [
        ("b", "zwei", "second"), ("c", "three", "first"), ("d", "vier", "second"),
    ]  # fmt: skip
    assert counts.sentence == (
        "1 added, 1 overwritten, 1 unchanged, 1 forgotten, 1 to forget that were not there"
    )
    assert before.keys == ("a", "b", "c")


def test_forgetting_all_leaves_what_the_round_adds() -> None:
    after, counts = index({"a": "one"}).changed(IndexChange(texts={"a": "1"}, empties=True), "next")
    assert [(d.key, d.text) for d in after.documents] == [("a", "1")]
    assert (counts.forgotten, counts.added) == (1, 1)


def test_an_id_stands_for_documents_and_settings() -> None:
    first = index({"a": "one"})
    assert first.id == index({"a": "one"}).id
    others = (index({"a": "two"}), index({"b": "one"}), index({"a": "one"}, top_k=1))
    assert len({first.id, *(other.id for other in others)}) == 4


def test_a_version_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    first = index({"a": "one\u2028two\n", "é": "日本"}, top_k=2, template="{prompt} {documents}")
    first.write(tmp_path)
    assert read_index(tmp_path) == first
    assert read_index(tmp_path / FOLDER) is None


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (INDEX, lambda text: text[:-9], "cannot be read"),
        (INDEX, lambda text: text.replace('"version": 1', '"version": 2'), "newer than 1"),
        (INDEX, lambda text: text.replace('"top_k": 3', '"top_k": 0'), "top_k"),
        (DOCUMENTS, lambda text: text.replace("one", "eno"), "its id is"),
        (DOCUMENTS, lambda text: text + text, "twice"),
        (DOCUMENTS, lambda text: "", "its id is"),
        (DOCUMENTS, lambda text: "{}\n", "cannot be read"),
    ],
)
def test_a_damaged_version_is_refused(tmp_path: Path, file: str, damage: Any, words: str) -> None:
    index({"a": "one"}).write(tmp_path)
    path = tmp_path / FOLDER / file
    path.write_text(damage(path.read_text()))
    with pytest.raises(SnapshotError, match=words):
        read_index(tmp_path)


# search


def test_bm25_by_hand() -> None:
    """Lucene's variant: idf * tf / (tf + k1 (1 - b + b length / mean length))."""
    search = BM25Search(["red red fox", "red hen", "a blue hen house"], k1=1.2, b=0.5)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # ``red`` stands in 2 of 3 documents.
    lengths = [3, 2]
    saturated = [
        tf / (tf + 1.2 * (0.5 + 0.5 * n / 3)) for tf, n in zip((2, 1), lengths, strict=True)
    ]
    assert search.scores("Red?").tolist() == pytest.approx([idf * s for s in saturated] + [0.0])
    assert search.scores("unknown words").tolist() == [0.0, 0.0, 0.0]
    assert search.scores("").tolist() == [0.0, 0.0, 0.0]


def test_a_search_returns_the_best_first_and_nothing_that_shares_no_word() -> None:
    documents = index({"a": "Paris, France", "b": "Rome, Italy", "c": "Paris and Rome"}, top_k=2)
    assert [d.key for d in documents.search("rome italy")] == ["b", "c"]
    assert [d.key for d in documents.search("FRANCE?")] == ["a"]
    assert documents.search("Berlin") == ()
    assert index({}).search("Paris") == ()
    assert index({"a": "?!"}).search("?!") == ()


def test_ties_go_to_the_older_document() -> None:
    documents = index({str(n): "same words" for n in range(40)}, top_k=40)
    assert [d.key for d in documents.search("words")] == [str(n) for n in range(40)]


class Letters:
    """An encoder that counts the letters a, b and c of a text."""

    id = "letters"

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.known: dict[str, Any] = {}

    def embed(self, texts: Sequence[str]) -> Any:
        for text in texts:
            if text not in self.known:
                self.encoded.append(text)
                counts = np.array([text.count(letter) for letter in "abc"], dtype=np.float32)
                self.known[text] = counts / max(float(np.linalg.norm(counts)), 1e-12)
        return np.stack([self.known[text] for text in texts])

    def vector(self, question: str) -> Any:
        return self.embed([question])[0]

    def keep(self, vectors: Mapping[str, Any]) -> None:
        self.known.update(vectors)


def dense(texts: dict[str, str], embedder: Letters) -> DocumentIndex:
    empty = DocumentIndex(settings=RetrievalConfig(method="dense", top_k=2), embedder=embedder)
    return empty.changed(IndexChange(texts=texts), "first")[0]


def test_a_dense_search_goes_by_the_cosine() -> None:
    documents = dense({"a": "aab", "b": "bbc", "c": "ccc"}, Letters())
    assert [d.key for d in documents.search("bb")] == ["b", "a"]
    assert [d.key for d in documents.search("c")] == ["c", "b"]
    assert documents.search("xyz") == ()


def test_vectors_are_stored_and_only_new_documents_are_encoded(tmp_path: Path) -> None:
    dense({"a": "aab", "b": "bbc"}, Letters()).write(tmp_path)
    later = Letters()
    read = read_index(tmp_path, later)
    assert read is not None
    grown = read.changed(IndexChange(texts={"b": "bcc", "c": "ccc"}), "second")[0]
    assert [d.key for d in grown.search("aa")] == ["a"]
    assert later.encoded == ["bcc", "ccc", "aa"]


def test_vectors_of_documents_are_kept_and_only_the_latest_of_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []

    def encode(text: str) -> Tensor:
        encoded.append(text)
        return tensor([3.0, 4.0])

    monkeypatch.setattr(texts_module, "QUESTIONS", 2)
    identity = EncoderIdentity(kind="sentences", sha256="0", width=2)
    embedder = texts_module.TextEmbedder(encode, identity)
    assert embedder.embed(["a", "b", "c"]).tolist() == [pytest.approx([0.6, 0.8])] * 3
    for question in (
        "a",
        "x",
        "y",
        "x",
        "z",
        "x",
        "y",
    ):  # z takes the place of y, then y that of z.
        assert embedder.vector(question).tolist() == pytest.approx([0.6, 0.8])
    embedder.embed(["c"])
    assert encoded == ["a", "b", "c", "x", "y", "z", "y"]


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    dense({"a": "aab"}, Letters()).write(tmp_path)
    other = Letters()
    other.id = "digits"
    with pytest.raises(SnapshotError, match="of the encoder letters, and the policy's is digits"):
        read_index(tmp_path, other)
    (tmp_path / FOLDER / VECTORS).unlink()
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_index(tmp_path, Letters())


def test_words_without_spaces_are_found() -> None:
    documents = index({"jp": "東京は首都です", "kr": "서울 수도"}, top_k=1)
    assert [d.key for d in documents.search("首都")] == ["jp"]
    assert [d.key for d in documents.search("수도")] == ["kr"]


# before a prompt


@pytest.fixture(scope="module")
def retrieving() -> RetrievingEncoder:
    plain = PromptEncoder(build_tokenizer())
    documents = index({"a": "rev 1 1", "b": "rev 2 2 2"}, template="{documents} {prompt}")
    return RetrievingEncoder(plain, documents, context=14, answer=4)


@pytest.mark.parametrize(
    ("question", "limit", "read"),
    [
        ("rev 1 =", 10, "rev 1 1 rev 2 2 2 rev 1 ="),
        ("rev 1 =", 9, "rev 1 1 rev 1 ="),
        ("rev 1 =", 6, "rev 1 1 rev 1 ="),
        ("rev 1 =", 5, "rev 1 ="),
        ("rev 1 =", 1, "rev 1 ="),
        ("sort 3 =", 10, "sort 3 ="),
    ],
)
def test_a_prompt_is_read_behind_the_documents_that_have_room(
    retrieving: RetrievingEncoder, question: str, limit: int, read: str
) -> None:
    ids = retrieving.encode_within(Prompt(id="p", text=question), limit)
    assert ids == retrieving.plain.encode(Prompt(id="p", text=read))


def test_an_example_is_read_behind_documents_with_room_for_its_longest_answer(
    retrieving: RetrievingEncoder,
) -> None:
    prompt = Prompt(id="p", text="rev 1 =")
    sides = [
        Row(prompt_ids=(1,), completion_ids=(7,) * n, advantage=1.0, source="new", round="r")
        for n in (2, 4)
    ]
    unit = retrieving.reading_unit(Unit(id="u", prompt=prompt, rows=tuple(sides)))
    assert {row.prompt_ids for row in unit.rows} == {retrieving.encode_within(prompt, 9)}
    assert [row.completion_ids for row in unit.rows] == [s.completion_ids for s in sides]
    window = replace(unit, prompt=None)
    assert retrieving.reading_unit(window) is window


def test_documents_spell_no_control_token(retrieving: RetrievingEncoder) -> None:
    mark = retrieving.tokenizer.eos_token
    harmful = index({"d": f"Q{mark}"})
    encoder = RetrievingEncoder(retrieving.plain, harmful, context=100)
    ids = encoder.encode(Prompt(id="q", text="Q"))
    assert len(ids) > 1 and retrieving.tokenizer.eos_token_id not in ids


USER: Message = {"role": "user", "content": "Q"}
CHATS: dict[str, tuple[tuple[Message, ...], str, tuple[Message, ...]]] = {
    "the last user": (
        (USER, {"role": "assistant", "content": "A"}, USER),
        "user",
        (USER, {"role": "assistant", "content": "A"}, {"role": "user", "content": "D\n\nQ"}),
    ),
    "its system message": (
        ({"role": "system", "content": "S"}, USER),
        "system",
        ({"role": "system", "content": "D\n\nS"}, USER),
    ),
    "a new system message": ((USER,), "system", ({"role": "system", "content": "D"}, USER)),
}


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_reads_documents_in_the_chosen_message(case: str) -> None:
    turns, role, expected = CHATS[case]
    documents = index({"d": "D"}, role=role)
    assert turns_with(turns, documents.documents, documents.settings) == expected
    assert turns_with(turns, (), documents.settings) == turns


# files


def test_a_file_of_documents(tmp_path: Path) -> None:
    file = rows(tmp_path / "d.jsonl", {"key": 1, "text": "one"}, {"key": "b", "text": None})
    change = load_change(IndexConfig(add=(file,), forget=("c",)))
    assert change.texts == {"1": "one"}
    assert change.forgotten == ("c", "b")
    without = rows(tmp_path / "w.jsonl", {"text": "one"}, {"text": "one"}, {"text": "two"})
    assert list(load_change(IndexConfig(add=(without,))).texts.values()) == ["one", "two"]


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ([{"key": "a", "body": "x"}], {}, "no column 'text'"),
        ([{"key": "a", "text": 3}], {}, "holds a int"),
        ([{"key": "a", "text": "\ud800"}], {}, "not valid Unicode"),
        ([{"key": "", "text": "x"}], {}, "the key in column 'key' is nothing"),
        ([{"key": None, "text": "x"}], {}, "the key in column 'key' is nothing"),
        ([{"key": [1], "text": "x"}], {}, r"the key in column 'key' is \[1\]"),
        ([{"key": True, "text": "x"}], {}, "the key in column 'key' is True"),
        ([{"key": "a" * 513, "text": "x"}], {}, "1 to 512 characters"),
        ([{"key": "a", "text": "x"}, {"key": "a", "text": "y"}], {}, "stands .* twice"),
        ([{"text": " "}], {}, "is empty"),
        ([{"text": "x"}], {"key": "id"}, "no column 'id'"),
        ([{"key": "a", "text": "x"}], {"forget": ["a"]}, "forgotten and added"),
        ([], {}, "holds no documents"),
    ],
)
def test_a_bad_file_is_one_message_with_its_place(
    tmp_path: Path, values: list[dict[str, Any]], settings: dict[str, Any], words: str
) -> None:
    file = rows(tmp_path / "d.jsonl", *values)
    with pytest.raises(UserError, match=words) as raised:
        load_change(IndexConfig(add=(file,), **settings))
    assert raised.value.where


def test_a_key_that_no_earlier_round_adds_cannot_be_forgotten() -> None:
    change = IndexChange(forgotten=("paris",), locations={"paris": "forget"})
    check_forgotten(change, ["paris"])
    with pytest.raises(UserError, match=r"no earlier round adds .* 'paris'") as raised:
        check_forgotten(change, ["pariss"])
    assert "pariss" in str(raised.value.remedy)
