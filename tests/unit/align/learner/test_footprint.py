"""Tokens of a pass: small models get what they are given, large ones what memory holds."""

from __future__ import annotations

from types import SimpleNamespace

from align.learner.model.footprint import (
    ACTIVATION_BYTES,
    SMALLEST_PASS,
    bytes_per_token,
    tokens_that_fit,
)


def shape(hidden: int, inner: int | None, layers: int, vocabulary: int) -> SimpleNamespace:
    return SimpleNamespace(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, vocab_size=vocabulary
    )


def test_a_small_model_keeps_its_passes() -> None:
    assert tokens_that_fit(shape(256, 768, 4, 128), 2600) == 2600


def test_a_chat_model_of_135_million_parameters() -> None:
    """30 layers of 9 x 576 + 4 x 1536 floats and 6 x 49152: 2.54 MB a token, so 317 of them."""
    config = shape(576, 1536, 30, 49152)
    assert bytes_per_token(config) == 4 * (30 * (5184 + 6144) + 294912) == 2_539_008
    assert tokens_that_fit(config, 2600) == ACTIVATION_BYTES // 2_539_008 == 317


def test_no_pass_becomes_too_short_to_multiply() -> None:
    assert tokens_that_fit(shape(4096, 14336, 32, 128256), 2600) == SMALLEST_PASS


def test_models_without_an_intermediate_size_have_four_times_the_hidden_one() -> None:
    assert bytes_per_token(shape(8, None, 1, 10)) == bytes_per_token(shape(8, 32, 1, 10))


def test_a_model_that_calls_its_sizes_otherwise_keeps_its_passes() -> None:
    assert tokens_that_fit(SimpleNamespace(vocab_size=100, width=4096), 2600) == 2600
    listed = shape(8, None, 1, 10)
    listed.intermediate_size = [32, 64]
    assert bytes_per_token(listed) == bytes_per_token(shape(8, None, 1, 10))
