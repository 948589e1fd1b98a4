"""Policy-gradient algorithms: GRPO, its relatives, and `actor_critic`, with the advantages they use."""
