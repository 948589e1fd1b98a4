"""Reward functions as people write them: signatures, options, adapters."""
