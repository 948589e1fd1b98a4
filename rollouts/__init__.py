"""Sampling: carriers, prompts and rollout engines. Imports nothing else of Keel."""
