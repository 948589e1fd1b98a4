"""Distillation: divergences by hand, a teacher with prompts of its own, and teachers that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from align.algorithms import divergences as kl
from align.algorithms.imitation.distill import Distill
from align.algorithms.imitation.sft import SFT
from align.algorithms.rows import Batch, Row, Totals
from align.config.campaign import LoraConfig, OptimizerConfig
from align.data.demo import BASE_MODEL
from align.learner.batching import to_tensors
from align.learner.teachers.teacher import check_teacher, with_teacher_prompts
from rollouts.errors import UserError
from rollouts.types import Completion, Prompt, RolloutGroup, Score, ScoredGroup
from tests.unit.align.algorithms.test_imitation import said
from tests.unit.align.learner.test_learner import gradients, make, settings
from tests.unit.tiny import row, save_model

OWN, TEACHER = [0.5, 0.5], [0.25, 0.75]
REVERSE = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)
FORWARD = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)
JSD = 0.2 * (0.25 * log(0.25 / 0.45) + 0.75 * log(0.75 / 0.55)) + 0.8 * (
    0.5 * log(0.5 / 0.45) + 0.5 * log(0.5 / 0.55)
)
"""Jensen-Shannon divergence at beta 0.2, where the mixture is 0.45 and 0.55."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"base": save_model(root / "base", 0), "other": save_model(root / "other", 1)}


def of(divergence: Any, **fields: Any) -> Distill:
    return Distill(divergence=divergence, **{"teacher": "base", **fields})


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [(of("reverse_kl"), REVERSE), (of("forward_kl"), FORWARD), (of("jsd", beta=0.2), JSD)],
)
def test_loss_by_hand(algorithm: Distill, expected: float) -> None:
    """The loss is that of the token that teaches, over the six of the whole mini-batch."""
    micro = to_tensors([row((1,), (0,)), row((1,), (1,), None)])
    outputs = said([OWN, [0.9, 0.1]], [0, 1])
    outputs.teacher = said([TEACHER, [0.2, 0.8]], [0, 1])
    loss, metrics = algorithm.objective(micro, outputs, Totals(tokens=6, sequences=3, units=3))
    assert loss.item() == pytest.approx(expected / 6, abs=1e-7)
    assert metrics["loss/policy"].item() == loss.item()


def test_both_are_compared_at_one_temperature() -> None:
    """A temperature of 0.5 squares probabilities: 1/2, 1/2 against 1/10, 9/10."""
    micro = to_tensors([row((1,), (0,))])
    expected = 0.5 * log(0.5 / 0.1) + 0.5 * log(0.5 / 0.9)
    totals = Totals(tokens=1, sequences=1, units=1)
    for sampled, compared in ((0.5, None), (1.0, 0.5)):
        outputs = said([OWN], [0], sampled)
        outputs.teacher = said([TEACHER], [0], sampled)
        loss, _ = of("reverse_kl", temperature=compared).objective(micro, outputs, totals)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    own_NV, teacher_NV = logits.log_softmax(-1)
    return own_NV, teacher_NV


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_jsd_is_a_divergence(seed: int, beta: float) -> None:
    own_NV, teacher_NV = distributions(seed)
    found_N = kl.jsd(own_NV, teacher_NV, beta)
    assert found_N.min() > 0 and found_N.max() < log(2)
    torch.testing.assert_close(found_N, kl.jsd(teacher_NV, own_NV, 1 - beta))
    assert kl.jsd(own_NV, own_NV, beta).abs().max() < 1e-12


@given(st.integers(0, 10_000))
def test_jsd_tends_to_both_kls(seed: int) -> None:
    own_NV, teacher_NV = distributions(seed)
    small = 1e-6
    near = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-6)
    near(kl.jsd(own_NV, teacher_NV, small) / small, kl.forward(own_NV, teacher_NV))
    near(kl.jsd(own_NV, teacher_NV, 1 - small) / small, kl.full(own_NV, teacher_NV))


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_from_itself_there_is_nothing_to_learn(
    models: dict[str, Path], tmp_path: Path, divergence: Any
) -> None:
    """Unless it reads more than the policy does."""
    training = make(models, tmp_path, settings(algorithm=of(divergence)))
    same = Batch(rows=tuple(replace(r, teacher_prompt_ids=None) for r in ROWS))
    assert gradients(training, Batch(rows=ROWS)).abs().max().item() > 1e-2
    assert gradients(training, same).abs().max().item() < 1e-6
    assert training.update(same)["loss/policy"] == pytest.approx(0.0, abs=1e-6)


ROWS = (
    replace(row((1, 2, 3), (4, 5)), teacher_prompt_ids=(9, 9, 9, 9, 1, 2, 3)),
    row((7,), (8, 9, 10)),
    replace(row((3, 4), (5, 6, 7, 8)), teacher_prompt_ids=(6, 3, 4)),
    row((2, 2), (9, 3), None, "general"),
)
WRITTEN_OUT: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "reverse_kl": lambda own, held: own.exp() * (own - held),
    "forward_kl": lambda own, held: held.exp() * (held - own),
    "jsd": lambda own, held: (
        0.3 * held.exp() * (held - (0.3 * held.exp() + 0.7 * own.exp()).log())
        + 0.7 * own.exp() * (own - (0.3 * held.exp() + 0.7 * own.exp()).log())
    ),
}


@pytest.mark.parametrize("divergence", WRITTEN_OUT)
@pytest.mark.parametrize("batch_tokens", [10_000, 8])
def test_an_update_by_the_definition(
    models: dict[str, Path], tmp_path: Path, divergence: Any, batch_tokens: int
) -> None:
    """The teacher reads its own prompts; passes are padded to other widths than the policy's."""
    from transformers import AutoModelForCausalLM

    share = {"beta": 0.3} if divergence == "jsd" else {}
    spec = settings(
        algorithm=of(divergence, teacher="round:first", **share),
        optimizer=OptimizerConfig(micro_batch_tokens=batch_tokens),
    )
    found = gradients(make(models, tmp_path, spec), Batch(rows=ROWS))
    policy = AutoModelForCausalLM.from_pretrained(models["base"])
    teacher = AutoModelForCausalLM.from_pretrained(models["other"])

    def logprobs_NV(model: Any, prompt: tuple[int, ...], r: Row) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *r.completion_ids]])
        return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)  # type: ignore[no-any-return]

    total = torch.zeros(())
    for r in ROWS[:3]:
        own = logprobs_NV(policy, r.prompt_ids, r)
        held = logprobs_NV(teacher, r.teacher_prompt_ids or r.prompt_ids, r).detach()
        total = total + WRITTEN_OUT[divergence](own, held).sum()
    (total / 9).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0)])
def test_a_model_folder_teaches(
    models: dict[str, Path], tmp_path: Path, lora: LoraConfig | None
) -> None:
    """Adapters too: the teacher is the folder's own model, and not the policy's base."""
    spec = settings(
        algorithm=of("forward_kl", teacher=f"model:{models['other']}"),
        optimizer=OptimizerConfig(lr=1e-2),
    )
    training = make(models, tmp_path, spec, lora=lora)
    rows = Batch(rows=tuple(replace(r, teacher_prompt_ids=None) for r in ROWS))
    start = training.update(rows)["loss/policy"]
    for _ in range(10):
        metrics = training.update(rows)
    assert start > 0.1
    assert metrics["loss/policy"] < 0.7 * start


def group(completions: list[Completion], text: str = "p", **prompt: Any) -> RolloutGroup:
    columns = prompt.pop("columns", {})
    return RolloutGroup(
        prompt=Prompt(id=text, text=text, columns=columns, **prompt), prompt_ids=(ord(text),),
        completions_G=tuple(completions), policy="v", seed=0,
    )  # fmt: skip


ANSWER = Completion(token_ids=(4, 5), logprobs_T=(-1.0, -1.0), text="", finish_reason="stop")


def test_every_completion_teaches_whatever_its_score() -> None:
    answered = ScoredGroup(
        group=group([ANSWER, Completion.failed("died"), ANSWER]),
        scores_G=(Score(value=None, status="abstained"),) * 3,
    )
    assert [r.advantage for r in of("jsd").rows([answered]).rows] == [1.0, 1.0]
    off_policy = of("jsd", on_policy=False)
    assert [r.advantage for r in off_policy.rows([answered]).rows] == [None, None]
    assert of("jsd").material == "rollouts"
    assert off_policy.material == "demonstrations"


SHOWN = Distill(
    teacher="parent", demonstration="worked", demonstration_template="{demonstration} | {prompt}"
)


def test_the_teacher_reads_the_demonstration_first() -> None:
    text = Prompt(id="a", text="2 + 2", columns={"worked": "1 + {1} = 2"})
    assert SHOWN.teacher_prompt(text) == replace(text, text="1 + {1} = 2 | 2 + 2")
    chat = Prompt(
        id="b",
        messages=({"role": "system", "content": "Sums."}, {"role": "user", "content": "2 + 2"}),
        columns={"worked": "1 + 1 = 2"},
    )
    assert SHOWN.teacher_prompt(chat) == replace(
        chat,
        messages=(
            {"role": "system", "content": "Sums."},
            {"role": "user", "content": "1 + 1 = 2 | 2 + 2"},
        ),
    )
    assert of("jsd").teacher_prompt(text) is None
    assert SFT().teacher_prompt(text) is None


def test_a_prompt_without_its_demonstration_is_named() -> None:
    with pytest.raises(UserError, match=r"'a' has no text in the column 'worked'[\s\S]*work"):
        SHOWN.teacher_prompt(Prompt(id="a", text="2 + 2", columns={"work": "1 + 1 = 2"}))


def test_rows_that_teach_get_their_teachers_prompt() -> None:
    """The general prompt has no demonstration, and needs none."""
    groups = [
        group([ANSWER, ANSWER], "p", columns={"worked": "x"}),
        group([ANSWER], "q", columns={"worked": "y"}),
        group([ANSWER], "g", source="general"),
    ]
    taught = SHOWN.rows([ScoredGroup(group=g, scores_G=()) for g in groups[:2]])
    batch = replace(taught, rows=(*taught.rows, row((ord("g"),), (4, 5), None, "general")))

    def encode(prompt: Prompt) -> tuple[int, ...]:
        return tuple(map(ord, prompt.text or ""))

    found = with_teacher_prompts(batch, groups, SHOWN, encode)
    expected = [encode(Prompt(id="", text=text)) for text in ("x | p", "x | p", "y | q")]
    assert [r.teacher_prompt_ids for r in found.rows] == [*expected, None]
    assert [r.prompt_ids for r in found.rows] == [r.prompt_ids for r in batch.rows]
    assert with_teacher_prompts(batch, groups, of("jsd"), encode) is batch


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "teacher"),
        ({"teacher": "owner"}, "pattern"),
        ({"teacher": "parent"}, "would learn nothing"),
        ({"teacher": "base", "beta": 1.0}, "less than 1"),
        ({"teacher": "base", "demonstration": "d", "on_policy": False}, "remove one"),
        ({"teacher": "base", "demonstration_template": "{prompt}"}, "needs both"),
        ({"teacher": "base", "demonstration_template": "{prompt} {demo}"}, "{demo}, which nothing"),
        ({"teacher": "base", "demonstration_template": "{prompt} {"}, "cannot fill"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Distill(**fields)


WHERE = "rounds.first.algorithm.teacher"


def changed(tmp_path: Path, file: str, **values: Any) -> Path:
    """The demo model with other values in one of its files."""
    folder = copytree(BASE_MODEL, tmp_path / "teacher")
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**found, **values}))
    return folder


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"num_hidden_layers": 9}),
        ("config.json", {"logit_scale": 1.0, "final_logit_softcapping": None}),
        ("tokenizer.json", {"truncation": {"max_length": 8}}),
        ("tokenizer.json", {"decoder": {"type": "Fuse"}}),
        ("tokenizer.json", {"added_tokens": []}),
    ],
)
def test_a_teacher_that_fits(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    """The same tokens under the same ids, however the file says it."""
    check_teacher(BASE_MODEL, changed(tmp_path, file, **values), WHERE)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"vocab_size": 50}, "50 entries and the policy's 22"),
        ("config.json", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("tokenizer.json", {"added_tokens": [{"content": "<x>", "id": 3}]}, "the token '<x>' as 3"),
    ],
)
def test_a_teacher_that_does_not_fit(
    tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_teacher(BASE_MODEL, changed(tmp_path, file, **values), WHERE)


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        check_teacher(BASE_MODEL, tmp_path / "nowhere", WHERE)
    folder = copytree(BASE_MODEL, tmp_path / "teacher")
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        check_teacher(BASE_MODEL, folder, WHERE)
