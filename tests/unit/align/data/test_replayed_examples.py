"""Examples of earlier rounds: what is kept, what fits which round, and what each step draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms.base import Material
from align.algorithms.rows import Row
from align.config.campaign import ReplayConfig, RoundConfig, SamplingConfig
from align.data.examples.stream import ExampleStream, Unit
from align.data.mixture import Mixture
from align.data.replay.buffer import ReplayBuffer
from align.data.replay.contributions import replay_lines
from align.data.replay.examples import OwnedExamples
from align.errors import StoreError
from rollouts.prompts import PromptStream
from rollouts.types import Prompt
from tests.unit.campaigns import campaign, rounds

SIDES = {"pairs": (1.0, -1.0), "ratings": (-1.0,), "demonstrations": (1.0,), "texts": (1.0,)}
DPO = {"name": "dpo", "pairs": "file"}
KTO = {"name": "kto", "ratings": "file"}


def units(name: str, count: int, material: Material) -> list[Unit]:
    return [
        Unit(
            id=f"{name}/{i}",
            prompt=None if material == "texts" else Prompt(id=f"p-{name}/{i}", text=f"{name} {i}"),
            rows=tuple(
                Row(
                    prompt_ids=(i + 1,), completion_ids=(7, 8 + side), advantage=advantage,
                    source="new", round=name, margin=0.5,
                )
                for side, advantage in enumerate(SIDES[material])
            ),
            location=f"{name}.jsonl:{i}",
            documents=(f"d-{name}/{i}",) if material == "texts" else (),
        )
        for i in range(count)
    ]  # fmt: skip


def kept(name: str, count: int, material: Material = "pairs") -> OwnedExamples:
    return OwnedExamples(
        round=name, owner=f"owner-{name}", material=material,
        units=tuple(units(name, count, material)),
    )  # fmt: skip


def mixture(share: float, rows_of_step: int, **sizes: int) -> Mixture:
    streams = {n: ExampleStream(kept(n, size).units_for("pairs"), 3) for n, size in sizes.items()}
    return Mixture(
        new=PromptStream([Prompt(id="a", text="a")], seed=1),
        past=ReplayBuffer(),
        general=None,
        stored=(),
        sampling=SamplingConfig(group_size=2, prompts_per_step=rows_of_step // 2),
        replay=ReplayConfig(past=0.0, general=0.0, examples=share),
        seed=3,
        examples=ExampleStream(units("new", 30, "pairs"), 3),
        past_examples=streams,
    )


def test_a_step_has_the_share_and_each_round_an_equal_part_of_it_by_hand() -> None:
    """40 rows a step are 20 pairs, and a share of .3 is 6 of them: 3 of either round."""
    rows = mixture(0.3, 40, a=10, b=10).draw(0).examples
    assert len(rows) == 40
    assert Counter(row.round for row in rows) == {"new": 28, "a": 6, "b": 6}
    past = [row for row in rows if row.source == "past"]
    assert {(row.round, row.owner) for row in past} == {("a", "owner-a"), ("b", "owner-b")}


def test_pairs_keep_both_sides_under_a_number_of_their_own() -> None:
    rows = mixture(0.3, 40, a=10, b=10).draw(4).examples
    sides: dict[int | None, list[float | None]] = {}
    for row in rows:
        sides.setdefault(row.unit, []).append(row.advantage)
    assert len(sides) == 20
    assert all(side == [1.0, -1.0] for side in sides.values())


def test_without_earlier_examples_the_share_goes_to_the_rounds_own() -> None:
    rows = mixture(0.3, 40).draw(0).examples
    assert Counter(row.round for row in rows) == {"new": 40}


@given(share=st.floats(0.05, 0.9), step=st.integers(0, 50), size=st.integers(1, 9))
def test_a_step_follows_from_its_number_alone(share: float, step: int, size: int) -> None:
    """A resumed round draws the same rows, whatever steps came before in this process."""
    straight = mixture(share, 12, a=size, b=4, c=7, d=2)
    drawn = [straight.draw(number) for number in range(step + 1)]
    assert mixture(share, 12, a=size, b=4, c=7, d=2).draw(step) == drawn[step]


@given(share=st.floats(0.1, 0.8), rounds=st.integers(1, 7))
def test_every_round_comes_up_as_often_and_passes_through_all_its_units(
    share: float, rounds: int
) -> None:
    mixed = mixture(share, 16, **{f"r{i}": 5 for i in range(rounds)})
    drawn = [row for step in range(150) for row in mixed.draw(step).examples]
    past = [row for row in drawn if row.source == "past"]
    assert len(drawn) == pytest.approx(150 * 16, abs=4)
    assert len(past) == pytest.approx(150 * 16 * share, abs=2)
    counts = Counter(row.round for row in past)
    assert len(counts) == rounds
    assert max(counts.values()) <= 1.25 * min(counts.values())
    for name in counts:
        seen = Counter(row.prompt_ids for row in past if row.round == name)
        assert len(seen) == 5 and max(seen.values()) - min(seen.values()) <= 2


@pytest.mark.parametrize(
    ("material", "needed", "number"),
    [
        ("pairs", "pairs", 4),
        ("pairs", "ratings", 8),
        ("pairs", "demonstrations", 0),
        ("ratings", "ratings", 4),
        ("ratings", "pairs", 0),
        ("demonstrations", "demonstrations", 4),
        ("demonstrations", "texts", 4),
        ("texts", "demonstrations", 4),
        ("texts", "pairs", 0),
        ("pairs", "rollouts", 0),
    ],
)
def test_units_fit_only_a_loss_that_can_learn_from_them(
    material: Material, needed: Material, number: int
) -> None:
    fitting = kept("a", 4, material).units_for(needed)
    assert len(fitting) == number == len({unit.id for unit in fitting})
    assert all(len(unit.rows) == (2 if needed == "pairs" else 1) for unit in fitting)


def test_a_pair_is_a_desirable_and_an_undesirable_answer() -> None:
    first, second = kept("a", 1).units_for("ratings")
    assert [first.rows[0].advantage, second.rows[0].advantage] == [1.0, -1.0]
    assert first.prompt == second.prompt


def spec(buffer: int) -> RoundConfig:
    round_ = {"name": "a", "steps": 1, "algorithm": DPO, "data": "a.jsonl"}
    return RoundConfig.model_validate({**round_, "replay": {"buffer": buffer}})


def test_the_cap_keeps_distinct_units_and_follows_from_the_seed() -> None:
    many = units("a", 30, "pairs") * 2
    first = OwnedExamples.chosen(spec(10), many, "owner", seed=1)
    assert len({unit.id for unit in first.units}) == 10 == len(first.units)
    assert first == OwnedExamples.chosen(spec(10), many, "owner", seed=1)
    assert first != OwnedExamples.chosen(spec(10), many, "owner", seed=2)
    assert len(OwnedExamples.chosen(spec(100), many, "owner", seed=1).units) == 30


@given(st.sets(st.integers(0, 9)), st.sampled_from(["pairs", "texts"]))
def test_no_held_out_prompt_or_document_is_left(held: set[int], material: Material) -> None:
    prefix = "d" if material == "texts" else "p"
    remaining = kept("a", 10, material).without({f"{prefix}-a/{i}" for i in held})
    assert {unit.id for unit in remaining.units} == {f"a/{i}" for i in range(10) if i not in held}


@pytest.mark.parametrize("material", ["pairs", "ratings", "demonstrations", "texts"])
def test_a_file_gives_the_same_rows_back(material: Material, tmp_path: Path) -> None:
    before = kept("a", 3, material)
    before.save(tmp_path / "a.jsonl")
    after = OwnedExamples.load(tmp_path / "a.jsonl")
    assert [u.rows for u in after.units_for(material)] == [
        u.rows for u in before.units_for(material)
    ]
    assert [(u.id, u.documents, u.location) for u in after.units] == [
        (u.id, u.documents, u.location) for u in before.units
    ]
    after.save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a"}', ""])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    kept("a", 2).save(path)
    head = path.read_text().splitlines()[0]
    path.write_text(f"{head}\n{line}\n")
    with pytest.raises(StoreError) as raised:
        OwnedExamples.load(path)
    assert raised.value.where == f"{path}:2"


def test_a_file_of_a_newer_keel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    kept("a", 2).save(path)
    head, *rest = path.read_text().splitlines()
    newer = json.dumps({**json.loads(head), "schema_version": 99})
    path.write_text("\n".join([newer, *rest]))
    with pytest.raises(StoreError, match="version 99"):
        OwnedExamples.load(path)


FILE = {"prompts": None, "rewards": []}


def test_every_earlier_round_is_named_with_what_it_gives(tmp_path: Path) -> None:
    replay = {"examples": 0.2}
    config = campaign(
        tmp_path,
        rounds=rounds(
            {},
            {**FILE, "algorithm": "sft", "data": "s.jsonl"},
            {**FILE, "algorithm": DPO, "data": "a.jsonl"},
            {**FILE, "algorithm": "reward_model", "data": "a.jsonl"},
            {**FILE, "algorithm": DPO, "data": "b.jsonl", "replay": replay},
            {**FILE, "algorithm": KTO, "data": "k.jsonl", "replay": replay},
        ),
    )
    lines = replay_lines(config.rounds, {})
    share = "replay.examples 0.2"
    assert lines[:5] == [
        f"round round4: {share} replays pairs of round2",
        f"round round4: {share} gets nothing of round0: grpo learnt from its own samples; replay.past "
        "samples its prompts again",
        f"round round4: {share} gets nothing of round1: it learnt from demonstrations, and dpo learns "
        "from pairs",
        f"round round4: {share} gets nothing of round3: a reward model owns no behaviour of the policy",
        f"round round5: {share} replays pairs of round2",
    ]
    assert lines[5] == f"round round5: {share} replays pairs of round4"
    rejected = replay_lines(config.rounds, {"round2": "rejected", "round5": "accepted"})
    assert (
        rejected[0] == f"round round4: {share} goes to its own pairs: no earlier round gives it any"
    )
    assert not any("round2" in line or line.startswith("round round5") for line in rejected)


def test_a_round_of_its_own_samples_refuses_the_setting_and_ignores_the_defaults(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ValueError, match=r"rounds.0.replay.examples is 0.2 and grpo learns from its"
    ):
        campaign(tmp_path, rounds=rounds({"replay": {"examples": 0.2}}))
    with pytest.raises(ValueError, match="must leave room for new examples"):
        campaign(tmp_path, defaults={"replay": {"past": 0.5, "examples": 0.5}})
    config = campaign(tmp_path, defaults={"replay": {"examples": 0.2}}, rounds=rounds({}))
    (line,) = replay_lines(config.rounds, {})
    assert "does nothing here" in line


def test_a_store_that_is_older_than_the_setting_keeps_its_hash(tmp_path: Path) -> None:
    plain, stated = (campaign(tmp_path, rounds=rounds({}, change)) for change in (
        {}, {**FILE, "algorithm": DPO, "data": "b.jsonl", "replay": {"examples": 0.2}}))  # fmt: skip
    assert "examples" not in plain.content()["rounds"][1]["replay"]
    assert stated.content()["rounds"][1]["replay"]["examples"] == 0.2
