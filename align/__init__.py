"""How the policy changes, and whether the change is kept."""
