"""Names of the corpus metrics, for campaign files, which are read without importing them."""

CORPUS_METRICS = frozenset({"span_f1", "triple_f1", "bleu", "chrf", "edit_success"})
"""Rewards whose value for a suite is computed from the sum of its items' counts."""
