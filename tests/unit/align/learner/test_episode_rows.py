"""Episodes as the learner sees them: observed tokens are read, and nothing else is done with them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.algorithms import algorithm_from
from align.algorithms.outputs import Outputs
from align.algorithms.preference.kto import mismatched
from align.algorithms.rows import DATA, Batch, Row, row_of
from align.config.campaign import AnchorConfig, AnchorsConfig, PolicyConfig, RoundSettings
from align.errors import ParityError
from align.learner.batching import build_batch, to_tensors
from align.learner.learner import Learner
from align.learner.model.loading import load_model
from align.learner.model.policy import completion_outputs
from align.learner.packing import use_packing
from align.learner.reference_cache import ReferenceCache
from align.learner.references import References
from align.learner.training import Training
from align.retention.anchors.copr import RankedAnswers, distances, read_sets, tensors_of
from align.retention.methods import RetentionMethods
from rollouts.types import TokenSpan
from tests.unit.episodes import episode, scored
from tests.unit.tiny import VOCABULARY, save_model

POLICY_LOSSES = ("grpo", "dapo", "dr_grpo", "cispo", "gspo", "rloo", "reinforce_pp")
"""Losses that need nothing but the policy's own log-probabilities."""
SETTINGS: dict[str, dict[str, Any]] = {
    "distill": {"teacher": "base"},
    "rft": {"keep": 2},
    "sft": {},
    "fpo": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_model(root / name, seed) for seed, name in enumerate(("base", "other"))}


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Any:
    return load_model(
        models["base"], PolicyConfig(model="tiny"), torch.device("cpu"), torch.float32
    )


def row(prompt: tuple[int, ...], *pieces: tuple[int, ...], advantage: float | None = 1.0) -> Row:
    """A row of tokens that are sampled, observed, sampled and so on."""
    made = episode(*pieces)
    return Row(
        prompt_ids=prompt,
        completion_ids=made.token_ids,
        observed=made.observed,
        advantage=advantage,
        source="new",
    )


def in_turns(whole: Row) -> list[Row]:
    """The same episode as a row of each turn, whose prompt is all that came before."""
    starts = [0, *(span.end for span in whole.observed)]
    ends = [*(span.start for span in whole.observed), len(whole.completion_ids)]
    return [
        replace(
            whole,
            prompt_ids=(*whole.prompt_ids, *whole.completion_ids[:start]),
            completion_ids=whole.completion_ids[start:end],
            observed=(),
        )
        for start, end in zip(starts, ends, strict=True)
        if start < end
    ]


def logprobs(model: Any, rows: list[Row]) -> Tensor:
    return completion_outputs(
        model, to_tensors(rows), dtype=torch.float32, temperature=1.0
    ).logprobs_N


def loss_of(algorithm: Any, model: Any, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Loss of rows, and the gradient of the model's weights."""
    model.zero_grad()
    micro = to_tensors(rows)
    outputs = completion_outputs(model, micro, dtype=torch.float32, temperature=1.0)
    loss, _ = algorithm.objective(micro, outputs, Batch(rows=tuple(rows)).totals)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.detach(), gradient


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3).map(tuple)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_an_episode_equals_its_turns_and_its_row_masked(
    model: Any, episodes: list[list[tuple[int, ...]]]
) -> None:
    rows = [row((1, 2), *pieces) for pieces in episodes]
    with torch.no_grad():
        own_N = logprobs(model, rows)
        turns_N = logprobs(model, [turn for whole in rows for turn in in_turns(whole)])
        plain = [replace(whole, observed=()) for whole in rows]
        split = torch.split(logprobs(model, plain), [len(r.completion_ids) for r in rows])
        masked_N = torch.cat(
            [all_T[r.sampled_positions] for all_T, r in zip(split, rows, strict=True)]
        )
    torch.testing.assert_close(own_N, turns_N, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(own_N, masked_N, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo", "reinforce_pp", "sft"])
def test_losses_over_tokens_are_those_of_the_turns(model: Any, name: str) -> None:
    rows = [
        row((1, 2), (4, 5), (9, 9, 9), (6,), advantage=1.5),
        row((1, 2), (7,), (9,), (8, 3, 2), (9, 9), advantage=-0.5),
    ]
    algorithm = algorithm_from({"name": name}).for_round(8)
    loss, gradient = loss_of(algorithm, model, rows)
    turns = [turn for whole in rows for turn in in_turns(whole)]
    expected, expected_gradient = loss_of(algorithm, model, turns)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-4)
    assert Batch(rows=tuple(rows)).totals.tokens == 7
    assert Batch(rows=tuple(rows)).class_tokens == {"new": 7}


@pytest.mark.parametrize("name", [*POLICY_LOSSES, "sft"])
def test_logits_that_predict_observed_tokens_get_no_gradient(name: str) -> None:
    rows = [
        row((1, 2), (4, 5), (9, 9, 9), (6,), advantage=1.5),
        row((1,), (7,), (9,), (8, 3), (9, 9), advantage=-0.5),
    ]
    micro = to_tensors(rows)
    torch.manual_seed(0)
    logits = torch.randn(micro.tokens_BT.numel(), VOCABULARY, requires_grad=True)
    outputs = Outputs(
        hidden_ND=logits[micro.where_N],
        head=lambda hidden: hidden,
        targets_N=micro.targets_N,
        temperature=1.0,
        dtype=torch.float32,
        vocabulary=VOCABULARY,
    )
    algorithm = algorithm_from({"name": name, **SETTINGS.get(name, {})}).for_round(8)
    loss, _ = algorithm.objective(micro, outputs, Batch(rows=tuple(rows)).totals)
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1).view(micro.tokens_BT.shape) > 0
    # Prompt 1 2, then 4 5 | 9 9 9 | 6: predicted behind 2, 4 and the last 9.
    assert touched[0].nonzero()[:, 0].tolist() == [1, 2, 6]
    # Prompt 1, then 7 | 9 | 8 3 | 9 9: predicted behind 1, the first 9 and 8.
    assert touched[1].nonzero()[:, 0].tolist() == [0, 2, 3]


def test_packed_episodes_give_what_padded_ones_give(models: dict[str, Path], model: Any) -> None:
    rows = [
        row((1, 2, 3), (4, 5), (9, 9, 9), (6,)),
        row((1, 2, 3), (4,), (9,), (8, 3, 2), (9, 9)),
        row((2,), (7, 7)),
    ]
    packed = load_model(
        models["base"], PolicyConfig(model="tiny"), torch.device("cpu"), torch.float32
    )
    assert use_packing(packed)
    with torch.no_grad():
        torch.testing.assert_close(
            logprobs(packed, rows), logprobs(model, rows), atol=2e-5, rtol=1e-4
        )


def training(models: dict[str, Path], tmp_path: Path, spec: RoundSettings) -> Training:
    learner = Learner(
        models["base"],
        PolicyConfig(model="tiny"),
        folder_of=lambda snapshot: models[snapshot],
        scratch=tmp_path,
        tolerance=1e-3,
    )
    references = References(base="other", parent="base", rounds={"last": "other"})
    return learner.begin(spec, references, num_steps=2, seed=0, penalties=RetentionMethods())


def sampled(learner: Learner, version: str) -> list[Any]:
    """Groups of episodes with the log-probabilities that the learner itself gives them."""
    groups = [
        scored(
            episode((4, 5), (9, 9, 9), (6,), turn_rewards=(0.5, 0.0)),
            episode((7,), (9,), (8, 3, 2), (9, 9), turn_rewards=(0.0, 1.0)),
            values=(1.0, 0.0),
            policy=version,
        ),
        scored(
            episode((5,), (9, 8), (2, 2)), episode((6, 6)),
            values=(0.0, 1.0), prompt_ids=(2, 3), policy=version,
        ),
        scored(
            episode((3,), (9, 8, 9), (2,)), values=(0.0,), prompt_ids=(8, 3),
            source="past", owner="other", round="last", policy=version,
        ),
    ]  # fmt: skip
    filled = []
    for group in groups:
        own = learner.completion_logprobs(
            [row_of(group.group, c, None) for c in group.group.completions_G]
        )
        completions = tuple(
            replace(c, logprobs_T=tuple(values))
            for c, values in zip(group.group.completions_G, own, strict=True)
        )
        filled.append(replace(group, group=replace(group.group, completions_G=completions)))
    return filled


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(
    "name",
    [*POLICY_LOSSES, "ppo", "cppo", "dpo", "fpo", "kto", "copr", "rft", "distill"],
)
def test_every_algorithm_learns_from_episodes(
    models: dict[str, Path], tmp_path: Path, name: str, turns: bool
) -> None:
    """The whole way of a batch, in two epochs of two mini-batches, with anchors and parity."""
    algorithm = algorithm_from({"name": name, **SETTINGS.get(name, {})}).for_round(8)
    if turns:
        if not algorithm.credits_turns:
            return
        algorithm = algorithm.by_turn()
    anchors = AnchorsConfig(
        new=(AnchorConfig(to="parent", beta=0.1),),
        past=(AnchorConfig(to="owner", beta=0.1, estimator="k3"),),
        general=(),
    )
    spec = RoundSettings(algorithm=algorithm, anchors=anchors)
    spec = spec.model_copy(
        update={"optimizer": spec.optimizer.model_copy(update={"epochs": 2, "mini_batches": 2})}
    )
    run = training(models, tmp_path, spec)
    run.learner.weights("step/0")
    batch = build_batch(sampled(run.learner, "step/0"), algorithm, replay_rewards=False)
    assert any(r.observed for r in batch.rows)
    metrics = run.update(batch)
    assert metrics["parity/max_abs_diff"] < 1e-3
    assert all(torch.isfinite(torch.tensor(list(metrics.values()))))
    assert metrics["steps_skipped"] == 0.0 and metrics["grad_norm"] > 0.0


def test_a_wrong_logprob_behind_an_observation_is_seen(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec = RoundSettings(algorithm=algorithm_from({"name": "grpo"}))
    run = training(models, tmp_path, spec)
    run.learner.weights("step/0")
    rows = build_batch(sampled(run.learner, "step/0"), spec.algorithm, replay_rewards=False).rows
    assert run.divergence(rows, "base") == pytest.approx(0.0, abs=1e-6)
    first = next(r for r in rows if r.observed)
    shifted = (*first.sampler_logprobs_T[:-1], first.sampler_logprobs_T[-1] - 0.5)
    wrong = [replace(first, sampler_logprobs_T=shifted)]
    with pytest.raises(ParityError):
        run.divergence(wrong, "base")


def test_the_reference_cache_tells_observed_tokens_from_sampled_ones() -> None:
    reference = (("base", 1.0),)
    whole = replace(row((1,), (4, 5, 6)), policy=DATA)
    masked = replace(whole, observed=(TokenSpan(1, 2),))
    cache = ReferenceCache(max_tokens=4)
    cache.keep([replace(masked, reference_logprobs_T=(-1.0, -2.0))], reference, 1.0)
    assert cache.recall(whole, reference, 1.0) is None
    recalled = cache.recall(masked, reference, 1.0)
    assert recalled is not None and recalled.reference_logprobs_T == (-1.0, -2.0)
    # Two tokens are kept of it, so two more fit.
    other = replace(row((2,), (4, 5)), policy=DATA, reference_logprobs_T=(0.0, 0.0))
    cache.keep([other], reference, 1.0)
    assert len(cache) == 2


def test_a_mismatched_answer_keeps_its_observed_tokens_as_far_as_it_is_kept() -> None:
    rows = [row((1, 1, 1), (4, 5)), row((2,), (6,), (9, 9, 9), (7,), (9,))]
    first, second = mismatched(rows)
    # The longest row has 7 tokens: 3 of the prompt leave room for 4 of the answer.
    assert (first.prompt_ids, first.completion_ids) == ((1, 1, 1), (6, 9, 9, 9))
    assert first.observed == (TokenSpan(1, 4),)
    assert (second.completion_ids, second.observed) == ((4, 5), ())


def test_ranked_episodes_come_back_from_an_artifact(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    answers = [row((1, 2), (4, 5), (9, 9, 9), (6,)), row((1, 2), (7,))]
    with torch.no_grad():
        sums = [float(own.sum()) for own in torch.split(logprobs(model, answers), [3, 1])]
    targets = tuple(torch.tensor(sums).log_softmax(-1).tolist())
    ranked = RankedAnswers(
        round="first",
        temperature=1.0,
        prompt=(1, 2),
        answers=tuple(answer.completion_ids for answer in answers),
        targets=targets,
        observed=tuple(answer.observed for answer in answers),
    )
    plain = replace(ranked, prompt=(3,), observed=(), answers=((4,), (5,)))
    save_file(tensors_of([ranked, plain]), tmp_path / "copr.safetensors")
    assert read_sets(tmp_path / "copr.safetensors") == [ranked, plain]
    assert RankedAnswers.read({**asdict(ranked)}) == ranked
    micro = to_tensors(ranked.rows(0))
    outputs = completion_outputs(model, micro, dtype=torch.float32, temperature=1.0)
    # The targets are the policy's own shares, so it is at no distance from them.
    assert distances(micro, outputs, [ranked])[0].item() == pytest.approx(0.0, abs=1e-9)
