"""Where it runs: the command line and the Ray cluster behind it."""
