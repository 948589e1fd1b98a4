"""Rewards: reward functions, the rubric that combines them, and their registry."""
