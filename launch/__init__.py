"""Command line, and the Ray cluster and servers behind it."""
