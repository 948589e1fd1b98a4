"""Policy-gradient algorithms: GRPO, PPO and their relatives, with the advantages they use."""
