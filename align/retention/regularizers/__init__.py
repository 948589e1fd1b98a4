"""Penalties on the trained weights, added to the loss of every optimizer step."""
