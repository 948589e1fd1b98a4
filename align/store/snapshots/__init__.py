"""Immutable snapshots of the policy, named by the hash of their manifest."""
