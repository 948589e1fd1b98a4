"""A Ray of one's own on this machine: how much memory it gets, and a start that stands a busy processor."""
