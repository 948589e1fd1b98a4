"""Settings of the index of documents that a policy reads, and of what a round changes in it."""
