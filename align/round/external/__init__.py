"""Rounds that a program of somebody else's trains."""
