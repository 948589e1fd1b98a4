"""Upkeep of a store: what is still needed, what can go, and whether all of it is whole."""
