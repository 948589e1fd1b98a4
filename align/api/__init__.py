"""Keel for programs and notebooks: what ``import align`` offers, behind lazy names."""
