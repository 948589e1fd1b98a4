"""Teachers of a round: what they share with the policy, and one that moves after it."""
