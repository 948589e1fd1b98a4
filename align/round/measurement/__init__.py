"""Measurements of a running campaign: snapshots, damaged evidence, and A/A runs."""
