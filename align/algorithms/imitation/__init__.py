"""Algorithms that imitate: SFT, pre-training, rejection sampling and distillation."""
