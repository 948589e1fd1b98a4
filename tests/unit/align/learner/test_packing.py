"""Packed rows: where their tokens lie, and that a model computes the same as on each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.algorithms.rows import Row
from align.config.campaign import PolicyConfig
from align.learner import packing
from align.learner.attention import attend
from align.learner.batching import micro_batches, to_tensors
from align.learner.model.loading import load_model
from align.learner.model.policy import completion_outputs
from align.learner.packing import pack, packs, use_packing
from tests.unit.tiny import VOCABULARY, row

SHARED = [
    row((1, 2, 3), (4, 5, 6, 7)),
    row((1, 2, 3), (8, 9)),
    row((2, 3), (5,)),
    row((1, 2, 3), (4, 5)),
]
"""A prompt of two rows, another one, and the first again where no neighbour has it."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip


def save(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | changes)).save_pretrained(
        folder
    )
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(folder, PolicyConfig(model="tiny"), torch.device("cpu"), dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(folder)


def test_where_tokens_lie_by_hand() -> None:
    found = pack(SHARED)
    assert found.tokens_S.tolist() == [1, 2, 3, 4, 5, 6, 8, 2, 3, 1, 2, 3, 4]
    assert found.positions_S.tolist() == [0, 1, 2, 3, 4, 5, 3, 0, 1, 0, 1, 2, 3]
    # The shared prompt's last token predicts the first token of both answers.
    assert found.where_N.tolist() == [2, 3, 4, 5, 2, 6, 8, 11, 12]
    # The longest row reads six tokens, and rows are laid out in steps of eight.
    assert found.shape == (4, 8)
    assert found.laid_out.view(4, 8)[1].tolist() == [0, 1, 2, 6, 0, 0, 0, 0]
    assert found.first_S.tolist() == [0, 1, 2, 3, 4, 5, 11, 16, 17, 24, 25, 26, 27]
    assert (found.again.tolist(), found.again_of.tolist()) == ([8, 9, 10], [0, 1, 2])


def result(model: Any, rows: Sequence[Row], *, packed: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all completion tokens, and the gradient of a weighted sum of them."""
    assert packs(model)
    if not packed:
        model.set_attn_implementation("sdpa")
    try:
        model.zero_grad()
        found_N = completion_outputs(
            model, to_tensors(rows), dtype=torch.float32, temperature=0.7
        ).logprobs_N
        (found_N * torch.linspace(-1, 2, len(found_N))).sum().backward()
    finally:
        model.set_attn_implementation(packing.PACKED)
    return found_N.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([(1,), (2, 3), (1, 2, 4, 5)]),
                          st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=7)),
                min_size=1, max_size=8))  # fmt: skip
def test_packed_rows_give_what_padded_rows_give(
    model: Any, lines: list[tuple[tuple[int, ...], list[int]]]
) -> None:
    rows = [row(prompt, tuple(completion)) for prompt, completion in lines]
    (found_N, gradient), (expected_N, expected) = (
        result(model, rows, packed=packed) for packed in (True, False)
    )
    torch.testing.assert_close(found_N, expected_N, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_tiles_by_hand() -> None:
    found = pack(SHARED)
    answers, prompts = found.tiles
    # The shared prompt asks once, its completions read it each.
    assert answers.queries_RT.tolist() == [[3, 4, 5, *[0] * 5], [6, *[0] * 7], [12, *[0] * 7]]
    assert answers.keys_RW[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert answers.unread.tolist() == [*range(3, 8), *range(9, 16), *range(17, 24)]
    read = (answers.mask_RTW == 0).sum(-1)
    assert read[0, :3].tolist() == [4, 5, 6]
    assert prompts.queries_RT[:, :3].tolist() == [[0, 1, 2], [7, 8, 0], [9, 10, 11]]
    assert found.copies_S.tolist() == [3, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "lines",
    [
        [(3, 5), (3, 1), (2, 4)],
        [(9, 8)] * 4,
        [(70, 140)] * 2,
        [(150, 3), (1, 130), (40, 66), (130, 1)],
        [(1, 1)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_tiles_give_what_whole_rows_give(lines: list[tuple[int, int]], shared: int) -> None:
    rows = [
        row(tuple(range(prompt)), tuple(range(completion))) for prompt, completion in sorted(lines)
    ]
    packed = pack(rows)
    tokens = len(packed.tokens_S)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(
            (tokens, heads, 8), generator=generator, dtype=torch.float64, requires_grad=True
        )
        for heads in (4, shared, shared)
    )
    tiled = attend(query, key, value, packed, 0.3)
    laid = (
        packing._lay_out(states.transpose(0, 1)[None], packed) for states in (query, key, value)
    )
    whole = packing._fused(*laid, 0.3).transpose(1, 2).flatten(0, 1)
    expected = packing._TakeBack.apply(whole, packed)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(tiled, expected, atol=1e-12, rtol=1e-12)
    direction = torch.randn(tiled.shape, generator=generator, dtype=torch.float64)
    for own, other in zip(
        torch.autograd.grad(tiled, (query, key, value), direction),
        torch.autograd.grad(expected, (query, key, value), direction),
        strict=True,
    ):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=1e-12)


def test_bfloat16_is_as_near_as_rounding_lets_it(folder: Path, model: Any) -> None:
    exact, _ = result(model, SHARED, packed=True)
    micro = to_tensors(SHARED)
    for held in (torch.float32, torch.bfloat16):
        outputs = completion_outputs(
            load(folder, held), micro, dtype=torch.bfloat16, temperature=0.7
        )
        assert 0 < (outputs.logprobs_N - exact).abs().max() < 0.25


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("qwen3", {"head_dim": 8}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, False),
        ("mistral", {"sliding_window": 4}, False),
        ("gpt2", {"n_positions": 64, "n_embd": 32, "n_head": 4, "n_layer": 2}, True),
        ("gpt_neox", {"rotary_pct": 0.5}, True),
        ("bloom", {"n_head": 4, "n_layer": 2}, False),
    ],
)  # fmt: skip
def test_models_that_attend_otherwise_are_left_alone(
    tmp_path: Path, kind: str, changes: dict[str, Any], expected: bool
) -> None:
    model = load(save(tmp_path, kind, **changes))
    assert packs(model) is expected
    assert use_packing(model) is expected
    before = model.config._attn_implementation
    assert (before == packing.PACKED) is expected


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("qwen3", {"head_dim": 8}, True),
        ("gpt_neox", {}, False),
        ("granite", {"residual_multiplier": 0.9}, False),
        ("olmo2", {}, False),
        ("qwen3_moe", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
          "moe_intermediate_size": 16}, False),
    ],
)  # fmt: skip
def test_the_last_layer_is_shortened_where_it_computes_the_same(
    tmp_path: Path, kind: str, changes: dict[str, Any], expected: bool
) -> None:
    model = load(save(tmp_path, kind, **changes))
    assert isinstance(model.get_decoder().layers[-1], packing.LastLayer) is expected
    (found_N, gradient), (expected_N, whole) = (
        result(model, SHARED, packed=packed) for packed in (True, False)
    )
    torch.testing.assert_close(found_N, expected_N, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, whole, atol=1e-4, rtol=1e-3)


def test_the_last_layer_hands_on_the_tokens_that_predict(model: Any) -> None:
    packed = pack([row((1, 2, 3, 4), (5, 6)), row((1, 2, 3, 4), (7,))])
    assert packed.ends_E.tolist() == [3, 4]
    assert packed.of_end_N.tolist() == [0, 1, 0]
    sizes: list[int] = []
    handle = model.get_decoder().norm.register_forward_hook(
        lambda module, inputs, out: sizes.append(out.shape[1])
    )
    assert packing.hidden_states(model.get_decoder(), packed).shape[0] == 3
    handle.remove()
    assert sizes == [2]


def test_a_model_that_would_compute_something_else_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(module: Any, query: Tensor, *rest: Any, packing: Any = None, **how: Any) -> Any:
        return packing_attention(module, query, *rest, packing=None, **how)

    packing_attention = packing.packed_attention
    with monkeypatch.context() as patch:
        patch.setattr(packing, "packed_attention", leaky)
        model = load(folder)
        assert not packs(model)
        assert model.config._attn_implementation == "sdpa"
    assert packs(load(folder))


def test_rows_of_one_prompt_stay_neighbours_where_they_are_packed() -> None:
    rows = [row((p, 1), (1,) * c) for c in (3, 9, 5) for p in (4, 6)]
    apart, (together,) = (
        [[r.prompt_ids[0] for r in m.rows] for m in micro_batches(rows, 200, packed=packed)]
        for packed in (False, True)
    )
    assert together in ([4, 4, 4, 6, 6, 6], [6, 6, 6, 4, 4, 4])
    assert [prompt for piece in apart for prompt in piece] == [4, 6] * 3
