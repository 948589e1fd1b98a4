"""How good it was: reward functions, the rubric that combines them, the registry."""
