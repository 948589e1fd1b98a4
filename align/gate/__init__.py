"""Gate that decides if a candidate becomes production, from paired items with a stated error rate."""
