"""Environments: tools and classes with TRL's contract, in worker processes, for policies that act."""
