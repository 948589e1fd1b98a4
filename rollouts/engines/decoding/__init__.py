"""Decoding with a transformers model: rows in one batch, the next token's distribution, and scores."""
