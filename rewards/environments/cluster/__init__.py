"""Environments on the nodes of a Ray cluster: their code travels there, and so do their episodes."""
