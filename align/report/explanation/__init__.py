"""A verdict in sentences, and the smallest change that would have turned it."""
