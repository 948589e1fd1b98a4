"""Whether a candidate becomes production, decided from paired items with a stated error rate."""
