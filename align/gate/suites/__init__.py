"""Suites: fixed items, how an answer becomes a value, and what may be lost of it."""
