"""Sampling from and scoring by an OpenAI-compatible server."""
