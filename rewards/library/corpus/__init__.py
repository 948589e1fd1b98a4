"""Metrics of a whole set of answers, such as F1 and BLEU, each also a reward for one answer."""
