"""Files that a round leaves for later: checkpoints, prompts to replay, artifacts of retention methods."""
