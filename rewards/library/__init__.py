"""Rewards that Keel ships."""
