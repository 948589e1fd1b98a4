"""Reward models: the loss by hand, a learner that nothing accidental can move, and the reward itself."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import exp, log, log1p
from pathlib import Path
from statistics import fmean, pstdev
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.algorithms import ALGORITHMS
from align.algorithms.preference.reward_model import RewardModel
from align.algorithms.rows import Row
from align.config.campaign import OptimizerConfig, PolicyConfig, RoundSettings
from align.data.demo.tokenizer import build_tokenizer
from align.errors import NonFiniteError
from align.learner.heads.reward_model import RewardLearner
from align.learner.optimizer import MAX_SKIPPED_STEPS
from rewards.environments.state import EndedEnvironment
from rewards.library import reward_model as scoring
from rewards.library.preference_model import preference_model, sigmoid
from rewards.library.reward_model import reward_model, sequence_scores
from rewards.rubric import build_rubric
from rollouts.errors import UserError
from rollouts.types import Completion, Episode, Prompt, RolloutGroup, WeightSpan
from tests.unit.tiny import save_model

TOKENIZER = build_tokenizer()
LIKED = 7
"""The digit that chosen answers are full of."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal model whose tokenizer knows the ten digits."""
    folder = save_model(tmp_path_factory.mktemp("models") / "base", 0)
    TOKENIZER.save_pretrained(folder)
    return folder


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def pair(unit: int, prompt: str, chosen: str, rejected: str, margin: float = 0.0) -> list[Row]:
    return [
        Row(
            prompt_ids=ids(prompt), completion_ids=(*ids(answer), TOKENIZER.eos_token_id),
            advantage=advantage, source="new", unit=unit, margin=margin,
        )
        for answer, advantage in ((chosen, 1.0), (rejected, -1.0))
    ]  # fmt: skip


def tastes(num_pairs: int, seed: int) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected: of two answers of any lengths, the one with more of the liked digit."""
    rng = random.Random(seed)

    def answer(share: float) -> str:
        length = rng.randint(4, 8)
        liked = set(rng.sample(range(length), round(share * length)))
        others = [digit for digit in range(10) if digit != LIKED]
        return " ".join(str(LIKED if i in liked else rng.choice(others)) for i in range(length))

    prompts = [" ".join(map(str, rng.choices(range(10), k=3))) for _ in range(num_pairs)]
    return [(prompt, answer(0.75), answer(0.25)) for prompt in prompts]


def rows(pairs: Sequence[tuple[str, str, str]]) -> list[Row]:
    return [row for unit, texts in enumerate(pairs) for row in pair(unit, *texts)]


def learner(
    base: Path, num_steps: int = 5, seed: int = 0, dtype: Any = "float32", **options: Any
) -> RewardLearner:
    spec = RoundSettings(
        algorithm=RewardModel(), optimizer=OptimizerConfig(**{"lr": 3e-3, **options})
    )
    policy = PolicyConfig(model="tiny", dtype=dtype)
    return RewardLearner(base, TOKENIZER, policy, spec, num_steps=num_steps, seed=seed)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that likes a digit, as a round would leave it behind."""
    model = learner(base, num_steps=40)
    for step in range(40):
        model.update(rows(tastes(16, seed=step)))
    model.calibrate(model.scores(rows(tastes(100, seed=1000))))
    folder = tmp_path_factory.mktemp("trained") / "snapshot"
    model.save(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


# the loss


def test_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    loss, metrics = RewardModel(centring=0.1).loss(chosen, rejected, torch.tensor([0.0, 0.5]), 2)
    first = -log(1 / (1 + exp(-1.0))) + 0.1 * 1.0
    second = -log(1 / (1 + exp(2.5))) + 0.1 * 4.0
    assert loss.item() == pytest.approx((first + second) / 2)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "loss/reward_model": (first + second) / 2,
            "pairs/accuracy": 0.5,
            "pairs/margin": (1.0 - 2.0) / 2,
            "reward/mean": 0.75,
        }
    )


def test_a_file_names_the_algorithm() -> None:
    assert ALGORITHMS["reward_model"] is RewardModel
    assert RewardModel().material == "pairs"


rewards_U = st.lists(
    st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 3)), min_size=2, max_size=6
)


@given(rewards_U, st.floats(-10, 10))
def test_without_centring_only_differences_count(
    given_U: list[tuple[float, float, float]], shift: float
) -> None:
    chosen, rejected, margins = torch.tensor(given_U, dtype=torch.float64).T
    plain = RewardModel(centring=0.0)
    loss, _ = plain.loss(chosen, rejected, margins, len(given_U))
    moved, _ = plain.loss(chosen + shift, rejected + shift, margins, len(given_U))
    assert moved.item() == pytest.approx(loss.item(), rel=1e-9)
    wider, _ = plain.loss(chosen, rejected, margins + 1.0, len(given_U))
    assert wider > loss


@given(rewards_U)
def test_parts_of_a_step_add_up(given_U: list[tuple[float, float, float]]) -> None:
    columns = torch.tensor(given_U, dtype=torch.float64).T
    algorithm = RewardModel(centring=0.3)
    whole, metrics = algorithm.loss(*columns, len(given_U))
    parts = [algorithm.loss(*piece, len(given_U)) for piece in columns.split(1, dim=1)]
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), rel=1e-9)
    for name, value in metrics.items():
        assert sum(p[name] for _, p in parts).item() == pytest.approx(value.item(), abs=1e-6)


def test_a_hopeless_pair_has_a_finite_gradient() -> None:
    chosen = torch.tensor([-1e4], requires_grad=True)
    loss, _ = RewardModel(centring=0.0).loss(chosen, torch.zeros(1), torch.zeros(1), 1)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-1.0)


# what a score is read from


@pytest.mark.parametrize("pad", [TOKENIZER.pad_token_id, TOKENIZER.eos_token_id])
def test_padding_does_not_change_a_score(base: Path, pad: int) -> None:
    model = learner(base).model
    model.config.pad_token_id = pad
    short = (*ids("3 1 4"), TOKENIZER.eos_token_id)
    with torch.no_grad():
        (alone,) = sequence_scores(model, [short]).tolist()
        found = [
            sequence_scores(model, [short, (*ids("2 7 1 8"),) * n])[0].item() for n in (1, 3, 9)
        ]
        other = sequence_scores(model, [(*ids("3 1 5"), TOKENIZER.eos_token_id)]).item()
    assert found == pytest.approx([alone] * 3, abs=1e-5)
    assert abs(other - alone) > 1e-3


def test_padding_is_masked() -> None:
    """A decoder would not see it anyway; a model that reads in both directions would."""
    seen: dict[str, list[list[int]]] = {}

    def model(**inputs: torch.Tensor) -> Any:
        seen.update((name, tensor.tolist()) for name, tensor in inputs.items())
        return SimpleNamespace(logits=torch.zeros(2, 1))

    text = SimpleNamespace(pad_token_id=9)
    model.config = SimpleNamespace(get_text_config=lambda: text)  # type: ignore[attr-defined]
    model.device = torch.device("cpu")  # type: ignore[attr-defined]
    sequence_scores(model, [(1,), (2, 3, 4)])
    assert seen == {
        "input_ids": [[1, 9, 9], [2, 3, 4]], "attention_mask": [[1, 0, 0], [1, 1, 1]]
    }  # fmt: skip


def test_a_model_without_padding_gets_the_tokenizers(base: Path) -> None:
    assert learner(base).model.config.pad_token_id == TOKENIZER.pad_token_id


# the learner


def gradient(model: RewardLearner, given: Sequence[Row]) -> torch.Tensor:
    """Of one update, before the optimizer moves anything."""
    model._step = dict  # type: ignore[method-assign]
    model.update(given)
    return torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None])


def test_micro_batch_split_and_row_order_do_not_matter(base: Path) -> None:
    given = rows(tastes(6, seed=1))
    expected = gradient(learner(base), given)
    assert expected.abs().max() > 1e-2
    for found in (
        gradient(learner(base, micro_batch_tokens=1), given),
        gradient(learner(base), given[::-1]),
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


def test_the_margin_of_a_pair_is_its_chosen_rows(base: Path) -> None:
    model = learner(base)
    chosen, rejected = pair(0, "1 2", "3 4", "5", margin=2.0)
    high, low = model.scores([chosen, rejected])
    found, _ = model.loss([chosen, rejected], 1)
    expected = log1p(exp(2.0 - (high - low))) + 0.01 * (high + low) ** 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_scores_come_in_the_order_of_the_rows(base: Path) -> None:
    model = learner(base, micro_batch_tokens=20)
    given = rows(tastes(5, seed=2))
    one_by_one = [model.scores([row])[0] for row in given]
    assert model.scores(given) == pytest.approx(one_by_one, abs=1e-5)
    assert len(set(one_by_one)) == len(given)


def test_the_seed_decides_everything(base: Path) -> None:
    def run(seed: int) -> list[dict[str, float]]:
        model = learner(base, seed=seed)
        return [model.update(rows(tastes(4, seed=step))) for step in range(3)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_mini_batches_are_optimizer_steps(base: Path) -> None:
    model = learner(base, num_steps=1, epochs=2, mini_batches=3, warmup_steps=5)
    metrics = model.update(rows(tastes(6, seed=0)))
    # Two passes of three parts are six steps, and the sixth ends the warm-up.
    assert metrics["lr"] == pytest.approx(3e-3 * fmean(k / 6 for k in range(1, 7)))


def test_bfloat16_computes_over_float32_master_weights(base: Path) -> None:
    model = learner(base, dtype="bfloat16")
    before = learner(base).update(rows(tastes(8, seed=0)))
    metrics = model.update(rows(tastes(8, seed=0)))
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert metrics["loss/reward_model"] == pytest.approx(before["loss/reward_model"], rel=0.05)
    assert metrics["loss/reward_model"] != before["loss/reward_model"]


def test_a_gradient_that_is_not_finite_moves_nothing_and_ends_the_round(base: Path) -> None:
    model = learner(base)
    given = pair(0, "1 2", "3 4", "5", margin=float("nan"))
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    for _ in range(MAX_SKIPPED_STEPS - 1):
        assert model.update(given)["steps_skipped"] == 1.0
    assert model.update(pair(0, "1 2", "3 4", "5"))["steps_skipped"] == 0.0
    model = learner(base)
    for _ in range(MAX_SKIPPED_STEPS - 1):
        model.update(given)
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        model.update(given)
    assert all(torch.equal(before[name], t) for name, t in model.model.state_dict().items())


# the reward


def test_it_prefers_what_it_was_trained_to_prefer(trained: Path) -> None:
    prompts, chosen, rejected = zip(*tastes(200, seed=2000), strict=True)
    high = reward_model(prompts, chosen, model=str(trained))
    low = reward_model(prompts, rejected, model=str(trained))
    assert fmean(a > b for a, b in zip(high, low, strict=True)) >= 0.9
    assert all(type(value) is float for value in high)


def test_rewards_are_on_the_scale_of_the_held_out_pairs(trained: Path) -> None:
    texts = tastes(100, seed=1000)
    prompts = [prompt for prompt, _, _ in texts for _ in range(2)]
    answers = [answer for _, *both in texts for answer in both]
    values = reward_model(prompts, answers, model=str(trained))
    assert (fmean(values), pstdev(values)) == pytest.approx((0.0, 1.0), abs=1e-4)
    config = scoring.load_scorer(trained).model.config
    raw = reward_model(prompts, answers, model=str(trained), normalise=False)
    expected = [(value - config.reward_mean) / config.reward_std for value in raw]
    assert values == pytest.approx(expected)
    assert values != pytest.approx(raw, abs=0.1)


def test_anybody_can_load_the_folder(trained: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert {file.suffix for file in trained.iterdir()} <= {".safetensors", ".json"}
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained, padding_side="right")
    texts = ["1 2 7 7 7 <eos>", "1 2 7 7 7 7 7 7 0 <eos>"]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    ours = reward_model(["1 2"] * 2, ["7 7 7", "7 7 7 7 7 7 0"], str(trained), normalise=False)
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_does_not_matter(trained: Path, batch_size: int) -> None:
    prompts, chosen, _ = zip(*tastes(7, seed=3), strict=True)
    expected = reward_model(prompts, chosen, model=str(trained))
    found = reward_model(prompts, chosen, model=str(trained), batch_size=batch_size)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_is_too_long_loses_its_beginning(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = scoring.load_scorer(trained).context
    answer = " ".join(["7 1"] * (context // 2))
    logged: dict[str, float] = {}
    with caplog.at_level(logging.WARNING, "rewards.library.reward_model"):
        whole, other, short = reward_model(
            ["1 2 3", "9 9 9", "1"],
            [answer, answer, "7"],
            model=str(trained),
            log_metric=logged.__setitem__,
        )
    assert whole == other != short
    assert "2 of 3 answers" in caplog.text
    assert logged == {"truncated": pytest.approx(2 / 3)}


def test_the_number_of_threads_is_given_back(trained: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        reward_model(["1"], ["7"], model=str(trained))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_is_one_part_of_a_rubric(trained: Path) -> None:
    spec = RewardSpec(options={"model": str(trained), "batch_size": 2})
    completions = tuple(
        Completion(
            token_ids=ids(text), logprobs_T=(0.0,) * 3, text=text, finish_reason="stop",
            weight_versions=(WeightSpan("x", 0, 3),),
        )
        for text in ("7 7 7", "1 2 3")
    )  # fmt: skip
    group = RolloutGroup(
        prompt=Prompt(id="p", text="1 2 3"), prompt_ids=ids("1 2 3"), completions_G=completions,
        policy="x", seed=0,
    )  # fmt: skip
    rubric = build_rubric([spec])
    ((good, bad),) = (scored.scores_G for scored in rubric.score([group]))
    assert good.status == bad.status == "scored"
    assert (good.value or 0.0) > (bad.value or 0.0) + 0.5
    assert rubric.metrics == {"reward_model/truncated": 0.0}


class RewardSpec:
    """What a campaign file says of a reward."""

    name, weight, part = "reward_model", 1.0, None

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


def test_an_earlier_rounds_model_is_known_only_later(base: Path) -> None:
    assert build_rubric([RewardSpec({"model": "round:taste"})])
    with pytest.raises(UserError, match="no reward model in 'round:taste'"):
        reward_model(["1"], ["7"], model="round:taste")


def test_what_is_no_reward_model_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            build_rubric([RewardSpec(options)])
        return str(caught.value)

    assert "needs a model" in refused()
    assert "no config.json" in refused(model=str(tmp_path / "nowhere"))
    assert "architecture is LlamaForCausalLM" in refused(model=str(base))
    assert "batch_size" in refused(model=str(trained), batch_size=0)
    # A folder that says it is one, and has no trained head.
    headless = shutil.copytree(base, tmp_path / "headless")
    shutil.copy(trained / "config.json", headless / "config.json")
    with pytest.raises(UserError, match="missing weights"):
        reward_model(["1"], ["7"], model=str(headless))


CHAT = (
    "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}0 {% endif %}"
)


def test_a_conversation_is_read_as_its_template_has_it(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "chat")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT.replace("<eos> {%", "<eos> 5 {%")
    tokenizer.save_pretrained(folder)
    scorer = scoring.load_scorer(folder)
    turns = [{"role": "user", "content": "1 2"}]
    answer = [{"role": "assistant", "content": "7 7"}]
    # The template's own 5 after the end is never sampled, so it is not read either.
    assert scorer.encode(turns, answer) == ids("1 2 <eos> 5 7 7 <eos>")
    assert scorer.encode("1 2", "7 7") == ids("1 2 7 7 <eos>")
    assert scorer.encode("1 2", "7 7 <eos>") == ids("1 2 7 7 <eos>")


@pytest.mark.parametrize("is_chat", [True, False])
def test_an_episode_is_read_as_a_whole(trained: Path, tmp_path: Path, is_chat: bool) -> None:
    folder = shutil.copytree(trained, tmp_path / "chat")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    turns = (
        {"role": "assistant", "content": "3 4"},
        {"role": "tool", "content": "8 8"},
        {"role": "assistant", "content": "7 7"},
    )
    acted = EndedEnvironment("", {}, None, Episode(observed=(), messages=turns, turns=2))
    chat: list[dict[str, Any]] = [{"role": "user", "content": "1 2"}]
    prompt, completion = (chat, list(turns)) if is_chat else ("1 2", "7 7")
    score = partial(reward_model, [prompt], [completion], model=str(folder), normalise=False)
    scorer = scoring.load_scorer(folder)

    def read(text: str) -> float:
        return scorer.scores([ids(text)], 1)[0]

    whole = read("1 2 <eos> 3 4 <eos> 8 8 <eos> 7 7 <eos>")
    assert score(environments=[acted]) == pytest.approx([whole])
    answer = read("1 2 <eos> 7 7 <eos>" if is_chat else "1 2 7 7 <eos>")
    assert score(environments=[acted], reads="answer") == pytest.approx([answer])
    preferred = preference_model(
        [prompt], [completion], ["5 5"], model=str(folder), environments=[acted]
    )
    assert preferred == pytest.approx([sigmoid(whole - read("1 2 <eos> 5 5 <eos>"))])
    with pytest.raises(UserError, match="reads 'turns'"):
        score(reads="turns")


def test_rows_of_two_units_are_not_mixed_up(base: Path) -> None:
    """Pairs are found by their number, wherever their rows stand."""
    model = learner(base)
    given = rows(tastes(2, seed=4))
    expected, _ = model.loss(given, 2)
    shuffled, _ = model.loss([given[3], given[0], given[2], given[1]], 2)
    assert shuffled.item() == pytest.approx(expected.item(), rel=1e-5)
    swapped, _ = model.loss(
        [replace(row, unit=1 - (row.unit or 0)) if i % 2 else row for i, row in enumerate(given)], 2
    )
    assert swapped.item() != pytest.approx(expected.item(), rel=1e-3)
