"""Policy gradients whose advantages come from a critic: PPO and its relatives."""
