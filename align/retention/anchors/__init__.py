"""Penalties on what the policy says, toward frozen or following copies of it."""
