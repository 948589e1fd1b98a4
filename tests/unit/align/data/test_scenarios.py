"""Worlds of the scenarios: the same on every machine, right by hand, and nothing asked that was taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.data.scenarios import SCENARIOS, base, extraction, folder, instructions, texts
from align.data.scenarios.classification import CUES
from align.data.scenarios.facts import documents, editing, temporal
from align.data.scenarios.questions import Exercise, TaskFamily
from align.data.scenarios.translation import Translation
from align.data.scenarios.world import Dice, Lesson
from rollouts.errors import UserError

CONFIGS = Path(__file__).parents[4] / "configs/scenarios"
WORLDS = {name: scenario.world(0) for name, scenario in SCENARIOS.items()}


def test_every_scenario_has_a_campaign_file() -> None:
    others = {
        name
        for each in SCENARIOS.values()
        for name in (each.in_weights, each.real_campaign)
        if name
    }
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*SCENARIOS} | others


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_campaign_reads_what_its_world_has(name: str) -> None:
    """Every path of a file into its world is a file of the world, and of each suite no more items."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    world, home = WORLDS[name], f"../../runs/scenarios/{name}/"
    words = text.replace("}", " ").replace(",", " ").replace("]", " ").split()
    read = {Path(word).name for word in words if word.startswith(home)} - {"base"}
    written = {f"{each}.jsonl" for each in world.files} | {f"{each}.txt" for each in world.texts}
    assert read <= written, read - written
    raw = yaml.safe_load(text)
    suites = [*raw["suites"], *(spec.get("suite", {}) for spec in raw["rounds"])]
    for suite in suites:
        if "prompts" in suite and "items" in suite:
            assert suite["items"] <= len(world.files[Path(suite["prompts"]).stem])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_world_follows_from_its_seed(name: str) -> None:
    again, other = SCENARIOS[name].world(0), SCENARIOS[name].world(1)
    assert (again.files, again.texts) == (WORLDS[name].files, WORLDS[name].texts)
    assert other.files != again.files


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_asked_word_for_word_as_it_was_taught(name: str) -> None:
    files = WORLDS[name].files
    taught = {
        json.dumps(row.get("prompt", row.get("text")))
        for file, rows in files.items()
        for row in rows
        if not is_asked(file)
    }
    asked = {
        json.dumps(row["prompt"]) for file, rows in files.items() if is_asked(file) for row in rows
    }
    texts = {text for documents in WORLDS[name].texts.values() for text in documents}
    assert asked or texts
    assert not asked & taught


def is_asked(file: str) -> bool:
    return file.rpartition("-")[2] in ("eval", "generality", "portability", "aspects")


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_base_has_every_word(name: str) -> None:
    words, dice = set(WORLDS[name].words()), Dice("other lessons")
    for _ in range(300):
        assert {word for part in WORLDS[name].lesson(dice) for word in part.split()} <= words


def test_dice_fall_alike_on_every_machine() -> None:
    dice = Dice("0/test")
    assert [dice.choose("abcdef") for _ in range(8)] == list("ecbdcadb")
    assert dice.shuffled("abcd") == list("bdac")


def drawn(family: TaskFamily, seed: str = "x") -> Exercise:
    return family.draw(Dice(seed))


def test_every_message_has_two_cues_to_each_class() -> None:
    rows = WORLDS["classification"].files["topic"]
    for row in rows[:50]:
        words = set(row["prompt"].split())
        cues = {label: len(words & set(cue.split())) for label, cue in CUES["topic"].items()}
        assert cues.pop(row["completion"]) == 2
        assert not any(cues.values())


def test_tags_stand_over_the_words_of_an_entity() -> None:
    for number in range(20):
        question = drawn(extraction.Entities(), str(number))
        words = question.text.split()
        for kind, pool in (("place", extraction.PLACES), ("firm", extraction.FIRMS)):
            tags = question.answers[kind].split()
            assert len(tags) == len(words)
            span = [word for word, tag in zip(words, tags, strict=True) if tag != "O"]
            assert tags.count(f"B-{extraction.ENTITY_TAGS[kind]}") == 1
            assert set(span) & set(pool)
            assert not set(span) & set(extraction.LINKS)


def test_triples_say_what_the_sentence_says() -> None:
    for number in range(20):
        question = drawn(extraction.Relations(), str(number))
        subject, *rest = question.text.split()
        facts = dict(zip(rest[::2], rest[1::2], strict=True))
        for relation, (verb, _) in extraction.RELATIONS.items():
            assert question.answers[relation] == f"{subject} | {relation} | {facts[verb]}"


def test_languages_order_words_in_their_own_way() -> None:
    question = drawn(Translation())
    first, subject, verb, second, other = question.text.split()
    assert question.answers["norsk"].split() == [
        word + "ur" for word in (first, subject, second, other, verb)
    ]
    assert question.answers["latino"].split() == [
        word + "o" for word in (subject, first, verb, other, second)
    ]
    assert question.answers["nihon"].split() == [
        word + "ka" for word in (second, other, first, subject, verb)
    ]


def test_instructions_by_hand() -> None:
    given = ["hill", "apple", "lamp", "drum"]
    followed = {name: list(f(given)) for name, f in instructions.INSTRUCTIONS.items()}
    assert followed == {
        "reverse": ["drum", "lamp", "apple", "hill"],
        "sort": ["apple", "drum", "hill", "lamp"],
        "rotate": ["apple", "lamp", "drum", "hill"],
        "repeat": given,
    }


def test_edits_change_what_the_base_knows_and_a_repeated_edit_is_asked_about_once() -> None:
    files = WORLDS["editing"].files
    known = editing.capitals(0)
    by_prompt = {editing.PROMPT.format(country): city for country, city in known.items()}
    for name in editing.ROUNDS:
        edited = answers(files[f"{name}-eval"])
        assert all(by_prompt[prompt] != answer for prompt, answer in edited.items())
        rivers = set(answers(files[f"{name}-portability"]).values())
        assert rivers == {editing.RIVERS[city] for city in edited.values()}
        steps = [river.split() for river in rivers]
        assert all(first + "water" == last for first, _, last in steps)
    assert not {*answers(files["first-eval"])} & {*answers(files["again-eval"])}
    first, again = (
        {row["prompt"]: row["completion"] for row in files[name]} for name in ("first", "again")
    )
    assert set(again) < set(first)
    assert all(first[prompt] != answer for prompt, answer in again.items())
    assert not set(answers(files["general-eval"])) & set(answers(files["second-eval"]))


def answers(rows: Any) -> dict[str, str]:
    return {row["prompt"]: row["answer"] for row in rows}


def test_a_year_is_asked_what_its_news_said() -> None:
    files = WORLDS["temporal"].files
    for year in temporal.YEARS:
        news = " ".join(row["text"] for row in files[year])
        for prompt, answer in answers(files[f"{year}-eval"]).items():
            assert f"{prompt} {answer} ." in news


def test_a_question_is_asked_of_the_round_that_answered_it_last() -> None:
    files = WORLDS["retrieval"].files
    newest: dict[str, str] = {}
    for year in temporal.YEARS:
        texts = {row["key"]: row["text"] for row in files[f"{year}-documents"]}
        assert set(texts) == {"/".join(fact) for fact in documents.changes(0)[year]}
        newest |= texts
    parts = [answers(files[f"{year}-eval"]) for year in temporal.YEARS]
    assert sum(map(len, parts)) == len({prompt for part in parts for prompt in part})
    right = {f"{prompt} {answer} ." for part in parts for prompt, answer in part.items()}
    assert right == set(newest.values())


def test_a_lesson_is_learnt_from_its_answer_and_its_end() -> None:
    ids = {"a": 3, "b": 4, "c": 5, base.EOS: 1}
    assert base.encode(Lesson("a b", "c"), ids) == ([3, 4, 5, 1], [-100, -100, 5, 1])
    assert base.encode(Lesson("", "c a"), ids) == ([5, 3, 1], [5, 3, 1])


def test_a_world_is_written_once_for_each_state_of_its_code(tmp_path: Path) -> None:
    notes: list[str] = []
    home = folder.write("editing", tmp_path, note=notes.append, steps=1)
    assert (home / "base/model.safetensors").is_file()
    rows = [json.loads(line) for line in (home / "first.jsonl").read_text().splitlines()]
    assert rows == list(WORLDS["editing"].files["first"])
    count = len(notes)
    folder.write("editing", tmp_path, note=notes.append, steps=1)
    assert len(notes) == count
    folder.write("editing", tmp_path, note=notes.append, steps=2)
    assert len(notes) > count


def test_real_domains_are_words_of_the_files_that_a_folder_has(tmp_path: Path) -> None:
    text = "Title: one\nText: " + "The cat sat, and 12 dogs ran. " * 6
    rows = {"agnews": {"text": text}, "amazon": {"text": text}}
    for name, row in rows.items():
        for split in ("train", "test"):
            path = tmp_path / f"continual/{name}_{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(row) + "\n")
    assert texts.real_domains(tmp_path, 0) is None
    (tmp_path / "evals/gsm8k").mkdir(parents=True)
    for name in ("train_2000", "test"):
        row = {"question": text, "answer": "1+1=<<1+1=2>>2"}
        (tmp_path / f"evals/gsm8k/{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "text").mkdir()
    (tmp_path / texts.STORIES).write_text(text * 8)
    world = texts.real_domains(tmp_path, 0)
    assert world is not None
    assert {name: len(rows) for name, rows in world.files.items()} | {"general": 0} == {
        "news": 1, "reviews": 1, "problems": 1, "general": 0,
    }  # fmt: skip
    assert str(world.files["news"][0]["text"]).startswith("one the cat sat , and 1 2 dogs ran .")
    assert texts.real_words({"question": "A?", "answer": "2*3=<<2*3=6>>6"}) == [*"a?2*3=6"]


def test_an_unknown_scenario_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scenario 'editting'") as caught:
        folder.write("editting", tmp_path)
    assert "editing" in str(caught.value.remedy)
