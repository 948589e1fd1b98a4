"""The chat template, its messages and its ends: one reading for learner, engines and gate."""
