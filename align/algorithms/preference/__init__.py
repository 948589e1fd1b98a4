"""Algorithms that learn from preferences: DPO, KTO and reward models."""
