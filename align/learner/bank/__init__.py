"""Bank of adapters as a learner has it."""
