"""Alignment rounds: how the policy changes, and the decision to keep a change."""
