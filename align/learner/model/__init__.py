"""The model that learns: weights, adapter, and the layers Keel computes itself."""
